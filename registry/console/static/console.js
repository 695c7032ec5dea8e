// Times in the reader's zone, with UTC on hover; and a second press sends no form again. The pages work without this
// script.

const DOUBLE = 10_000; // milliseconds in which a form is sent once

const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

for (const element of document.querySelectorAll("time[datetime]")) {
  const at = new Date(element.dateTime);
  if (!Number.isNaN(at.getTime())) {
    element.title = element.textContent;
    element.textContent = format.format(at);
  }
}

// The browser would drop the answer to the first press, which may have a secret that is shown once.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.dataset.sent) return void event.preventDefault();
  form.dataset.sent = "yes";
  setTimeout(() => delete form.dataset.sent, DOUBLE); // where no answer comes
});
