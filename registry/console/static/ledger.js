// Shows what `verify.js` proves of this page, and keeps the pin and the newest proved checkpoint in this browser.

import { NotVerified, PROVED, REFUSED, UNVERIFIED, verify } from "./verify.js";

const VERDICTS = {
  [PROVED]: ["done", "Verified by this browser"],
  [REFUSED]: ["refusal", "Does not match, do not rely on this page"],
  [UNVERIFIED]: ["unverified", "Not verified by this browser"],
};
const WORDS = { [PROVED]: "proved", [REFUSED]: "does not match", [UNVERIFIED]: "not verified" };

const part = (name) => document.getElementById(`verification-${name}`);
const [verdict, steps, known, form] = ["verdict", "steps", "known", "form"].map(part);
const [pin, forget, fork] = ["pin", "forget", "fork"].map(part);
const { domain } = part("section").dataset;
const PLACE = `peerseal ${domain}`;
const root = new URL("../..", import.meta.url); // of the registry, below which are its public files

// ---- what is kept: {pin, seen}

function kept() {
  try {
    return JSON.parse(localStorage.getItem(PLACE)) ?? {};
  } catch {
    return {}; // nothing was kept, or this browser keeps nothing
  }
}

function keep(values) {
  try {
    localStorage.setItem(PLACE, JSON.stringify(values));
  } catch {
    // the pin has to be typed again on the next page
  }
}

/** Keeps a proved checkpoint, unless another page of this browser has kept a later one meanwhile. */
function keepSeen(seen) {
  const now = kept();
  if (!now.seen || now.seen.size <= seen.size) keep({ ...now, seen });
}

// ---- the page

function shown() {
  return Array.from(document.querySelectorAll("[data-seq]"), (element) => ({
    seq: Number(element.dataset.seq),
    cells: Object.fromEntries(Array.from(element.querySelectorAll("[data-member]"), cell)),
    body: document.getElementById("entry-body")?.textContent,
    evidence: document.getElementById("entry-evidence")?.textContent,
  }));
}

/** A name and what is shown; of a time its value, since its text is in the reader's zone. */
function cell(element) {
  return [element.dataset.member, element.querySelector("time")?.dateTime ?? element.textContent];
}

async function read(path) {
  const answer = await fetch(new URL(path, root), { cache: "no-store", credentials: "omit", redirect: "error" }).catch(() => {
    throw new NotVerified(`the registry does not answer at /${path}`);
  });
  if (!answer.ok) throw new NotVerified(`the registry answers ${answer.status} to /${path}`);
  return new Uint8Array(await answer.arrayBuffer());
}

function tell(state, more = "") {
  const [look, words] = VERDICTS[state];
  verdict.className = look;
  verdict.textContent = more ? `${words}: ${more}` : words;
}

function showSteps(done) {
  steps.replaceChildren(...done.map(({ name, state, text }) => {
    const item = document.createElement("li");
    const how = document.createElement("strong");
    how.className = `state ${state}`;
    how.textContent = WORDS[state];
    item.append(how, ` ${name}: ${text}`);
    return item;
  }));
}

/** Two signed checkpoints that contradict each other prove that the registry signed two ledgers. */
function showFork({ forked, checkpoint }, seen) {
  fork.hidden = !forked;
  if (forked) fork.querySelector("pre").textContent = `${seen.note}\n${checkpoint.note}`;
}

async function check() {
  const { pin: last = "", seen = null } = kept(); // before anything is fetched: see `verify`
  const typed = pin.value.trim() || last;
  forget.hidden = !last;
  known.open = !typed;
  if (!typed) return tell(UNVERIFIED, "it does not know the registry's pin yet");
  pin.value = typed;
  tell(UNVERIFIED, "checking");
  const result = await verify({
    read, pin: typed, domain, now: Date.now() / 1000, remembered: seen, shown: shown(),
  });
  if (result.remember) keepSeen(result.remember);
  known.open = result.state !== PROVED;
  const trouble = result.steps.find(({ state }) => state === result.state && state !== PROVED);
  tell(result.state, trouble?.text);
  showSteps(result.steps);
  showFork(result, seen);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  keep({ ...kept(), pin: pin.value.trim() });
  check();
});
forget.addEventListener("click", () => {
  if (!confirm(`Forget the pin and the checkpoint of ${domain} in this browser?`)) return;
  localStorage.removeItem(PLACE);
  location.reload();
});
known.hidden = false;
check();
