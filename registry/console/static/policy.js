// Answers "may it call?" while the policy is typed. Without this script the form's button asks the same.

const PAUSE = 300; // milliseconds after the last key

const form = document.querySelector("form[data-try]");
const told = document.querySelector("#told");
let asked = 0;
let timer;

async function ask() {
  const number = ++asked;
  const answer = await fetch(form.dataset.try, { method: "POST", body: new URLSearchParams(new FormData(form)) });
  const { allowed, said } = answer.ok ? await answer.json() : { said: "" };
  if (number !== asked) return; // a later question is on its way
  told.hidden = !said;
  told.className = allowed ? "done" : "refusal";
  told.textContent = said;
}

form?.addEventListener("input", () => {
  clearTimeout(timer);
  if (form.elements.asked_caller.value && form.elements.asked_scope.value) timer = setTimeout(() => ask().catch(() => {}), PAUSE);
});
