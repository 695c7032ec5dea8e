// Times in the reader's zone, with UTC on hover. The pages work without this script.

const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

for (const element of document.querySelectorAll("time[datetime]")) {
  const at = new Date(element.dateTime);
  if (!Number.isNaN(at.getTime())) {
    element.title = element.textContent;
    element.textContent = format.format(at);
  }
}
