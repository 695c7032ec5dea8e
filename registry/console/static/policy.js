// Answers "may it call?" while the policy is typed. Without this script the form's button asks the same.

const PAUSE = 300; // milliseconds after the last key

const form = document.querySelector("form[data-try]");
const told = document.querySelector("#told");
let asked = 0;
let timer;

function tell(look, text) {
  told.hidden = !text;
  told.className = look;
  told.textContent = text;
}

async function answerOf(fields) {
  const answer = await fetch(form.dataset.try, { method: "POST", body: new URLSearchParams(fields) }).catch(() => {
    throw new Error("the registry does not answer");
  });
  if (answer.ok) return answer.json();
  const signedOut = answer.status === 401 || answer.status === 400;
  throw new Error(signedOut ? "you are signed out; copy what you typed, and sign in" : `the registry answers ${answer.status}`);
}

async function ask() {
  const number = asked;
  let look, text;
  try {
    const { allowed, said } = await answerOf(new FormData(form));
    [look, text] = [allowed ? "done" : "refusal", said];
  } catch (error) {
    [look, text] = ["notice", `No answer: ${error.message}.`];
  }
  if (number === asked) tell(look, text); // else something was typed meanwhile
}

form?.addEventListener("input", () => {
  clearTimeout(timer);
  asked += 1;
  tell("", ""); // an answer is about what was typed before
  if (form.elements.asked_caller.value && form.elements.asked_scope.value) timer = setTimeout(ask, PAUSE);
});
form?.querySelector("#try").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
  event.preventDefault(); // it would review the policy
  clearTimeout(timer);
  asked += 1;
  ask();
});
