// Adds new events to the list of activity every five seconds, while the page is visible and not paused.

const EVERY = 5000; // milliseconds
const KEPT = 500; // rows of the page; older ones are on the next pages

const live = document.getElementById("live");
const list = document.getElementById("events");
const [button, said] = [live.querySelector("button"), live.querySelector("[role=status]")];
const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
let after = live.dataset.after;
let paused = false;
let ended = false;
let looking = false;
let timer;

function cell(row, text, link, tag) {
  const made = row.appendChild(document.createElement("td"));
  if (text === null || text === undefined || text === "") {
    made.textContent = "–";
    return;
  }
  const inner = link ? made.appendChild(document.createElement("a")) : tag ? made.appendChild(document.createElement(tag)) : made;
  if (link) inner.href = link; // a path that the registry made
  inner.textContent = text;
}

function time(row, event) {
  if (event.time_text === "–") return cell(row, ""); // an altered row has it, and no calendar
  const made = row.appendChild(document.createElement("td")).appendChild(document.createElement("time"));
  const at = new Date(event.time * 1000);
  made.dateTime = at.toISOString();
  made.title = event.time_text;
  made.textContent = format.format(at);
}

function rowOf(event) {
  const row = document.createElement("tr");
  row.className = "new";
  time(row, event);
  cell(row, event.type, event.type_link);
  cell(row, event.service, event.service_link);
  cell(row, event.subject ?? event.said, null, event.subject ? "code" : null);
  cell(row, event.by, event.by_link);
  cell(row, event.seq, event.seq_link);
  return row;
}

function show(events) {
  if (events.length) for (const old of list.querySelectorAll("tr.new")) old.className = "";
  for (const event of events) list.prepend(rowOf(event));
  if (list.rows.length > KEPT) {
    while (list.rows.length > KEPT) list.lastElementChild.remove();
    document.querySelector("a[rel=next]")?.remove(); // it leads to what was older than the rows that are gone
    document.getElementById("left-out").hidden = false;
  }
  const count = events.length === 1 ? "1 new event" : `${events.length} new events`;
  if (events.length) said.textContent = `${count}, the newest: ${events.at(-1).type}`;
}

function end(text) {
  ended = true;
  button.hidden = true;
  said.textContent = text;
}

async function look() {
  const address = new URL(live.dataset.source, document.baseURI);
  address.searchParams.set("after", after);
  const answer = await fetch(address, { redirect: "manual", cache: "no-store" }).catch(() => {
    throw new Error("the registry does not answer");
  });
  if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 403) {
    end("You are signed out. Load the page again to sign in.");
    return false;
  }
  if (!answer.ok) throw new Error(`the registry answers ${answer.status}`);
  const found = await answer.json();
  if (paused) return false; // meanwhile: the same events come again later
  show(found.rows);
  after = found.after;
  return found.more;
}

async function run() {
  clearTimeout(timer);
  if (looking || paused || ended || document.hidden) return;
  looking = true;
  try {
    while (!paused && !document.hidden && (await look()));
    if (said.dataset.failed) said.textContent = "Live again.";
    delete said.dataset.failed;
  } catch (error) {
    if (!said.dataset.failed) said.textContent = `New events cannot be read: ${error.message}. This page tries again.`;
    said.dataset.failed = "yes";
  }
  looking = false;
  clearTimeout(timer);
  if (!ended) timer = setTimeout(run, EVERY);
}

button.addEventListener("click", () => {
  paused = !paused;
  button.setAttribute("aria-pressed", String(paused));
  said.textContent = paused ? "Paused." : "New events appear at the top.";
  run();
});
document.addEventListener("visibilitychange", run);
said.textContent = "New events appear at the top.";
live.hidden = false;
timer = setTimeout(run, EVERY);
