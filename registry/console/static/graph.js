// Draws the trust graph. The page's tables say the same without this script.

import { COLUMN, layout, neighbours, reach, ROW } from "./layout.js";

const SVG = "http://www.w3.org/2000/svg";
const ANYONE = "*";
const [WIDE, HIGH] = [190, 22]; // a node's box
const SHORT = 26; // characters of a name in its box
const FAR = 0.3; // below this scale names are left out
const NAMED = 8; // services that are named in a sentence

const section = document.getElementById("drawing");
if (section) start();

async function start() {
  section.hidden = false;
  const said = document.getElementById("said");
  said.textContent = "The graph is being drawn.";
  try {
    const answer = await fetch(section.dataset.source, { redirect: "manual", cache: "no-store" }).catch(() => {
      throw new Error("the registry does not answer");
    });
    if (!answer.ok) throw new Error(answer.status ? `the registry answers ${answer.status}` : "you are signed out");
    const graph = await answer.json();
    said.textContent = "";
    draw(graph, said);
  } catch (error) {
    said.textContent = `The graph cannot be drawn: ${error.message}. The tables below have the same.`;
  }
}

function element(name, attributes, parent, text) {
  const made = parent.appendChild(document.createElementNS(SVG, name));
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function draw(graph, said) {
  const svg = document.getElementById("graph");
  const places = layout(graph.nodes.length, graph.calls);
  const near = neighbours(graph.nodes.length, graph.calls);
  const anyone = graph.nodes.indexOf(ANYONE);
  const lines = Object.fromEntries(["all", "reach", "callers", "callees"].map((name) => [name, element("path", { class: name }, svg)]));
  lines.all.setAttribute("d", curves(graph.calls, places));
  const boxes = graph.nodes.map((name, node) => box(svg, node, name, places));
  const view = camera(svg, places);
  const choose = chooser({ graph, places, near, anyone, lines, boxes, svg, said });
  leftOut(graph);
  search(graph, choose, view, said);
  svg.addEventListener("click", (event) => {
    const node = event.target.closest(".node");
    if (node && !view.moved()) choose(Number(node.dataset.node));
  });
  if (section.dataset.of) choose(graph.nodes.indexOf(section.dataset.of));
  for (const button of section.querySelectorAll("button[data-act]")) {
    button.addEventListener("click", () => (button.dataset.act === "clear" ? choose(-1) : view[button.dataset.act]()));
  }
}

function leftOut(graph) {
  const told = document.getElementById("left-out");
  told.hidden = !graph.more;
  told.textContent = `Only the first ${graph.calls.length} calls are drawn: show one service to see its own.`;
}

function curves(calls, { x, y }) {
  const parts = [];
  for (const [caller, callee] of calls) {
    const [x1, y1] = [x[caller] + WIDE, y[caller] + HIGH / 2];
    const [x2, y2] = [x[callee], y[callee] + HIGH / 2];
    const bend = Math.max(30, Math.abs(x2 - x1) / 2);
    parts.push(`M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`);
  }
  return parts.join("");
}

function box(svg, node, name, { x, y }) {
  const label = name === ANYONE ? "anyone" : name;
  const group = element("g", { class: name === ANYONE ? "node anyone" : "node", "data-node": node, transform: `translate(${x[node]} ${y[node]})` }, svg);
  element("title", {}, group, label);
  element("rect", { width: WIDE, height: HIGH, rx: 4 }, group);
  element("text", { x: 8, y: 15 }, group, label.length > SHORT ? `${label.slice(0, SHORT - 1)}…` : label);
  return group;
}

// ---- choosing a service

function chooser({ graph, places, near, anyone, lines, boxes, svg, said }) {
  const foreign = (node) => graph.nodes[node].includes("/"); // the id of a service of another trust domain
  const marks = ["chosen", "caller", "callee", "reached"];
  return (node) => {
    const on = node >= 0;
    const callers = new Set(on ? near.in[node] : []);
    const callees = new Set(on ? near.out[node] : []);
    const reached = on ? reach(node, near, anyone, foreign) : new Set();
    const asAnyone = on && anyone >= 0 && !foreign(node);
    if (asAnyone && node !== anyone) for (const callee of near.out[anyone]) if (callee !== node) callees.add(callee);
    boxes.forEach((group, each) => {
      const is = { chosen: each === node, caller: callers.has(each), callee: callees.has(each), reached: reached.has(each) && !callees.has(each) };
      for (const mark of marks) group.classList.toggle(mark, is[mark]);
    });
    svg.classList.toggle("choosing", on);
    const calling = (caller) => caller === node || (asAnyone && caller === anyone);
    lines.callers.setAttribute("d", curves(graph.calls.filter(([, callee]) => callee === node), places));
    lines.callees.setAttribute("d", curves(graph.calls.filter(([caller]) => calling(caller)), places));
    lines.reach.setAttribute("d", curves(graph.calls.filter(([caller, callee]) => reached.has(caller) && reached.has(callee)), places));
    tell(said, graph, node, callers, callees, reached);
  };
}

function tell(said, graph, node, callers, callees, reached) {
  said.replaceChildren();
  if (node < 0) return;
  const name = graph.nodes[node];
  const names = (found) => {
    const all = [...found].map((each) => (graph.nodes[each] === ANYONE ? "anyone" : graph.nodes[each])).sort();
    return all.length > NAMED ? `${all.slice(0, NAMED).join(", ")} and ${all.length - NAMED} more` : all.join(", ") || "none";
  };
  const strong = said.appendChild(document.createElement("strong"));
  strong.textContent = name === ANYONE ? "anyone" : name;
  said.append(` – callers: ${names(callers)}; callees: ${names(callees)}; reaches ${reached.size} ${reached.size === 1 ? "service" : "services"}. `);
  if (name === ANYONE) return;
  const link = said.appendChild(document.createElement("a"));
  const page = new URL(section.dataset.page, document.baseURI);
  page.searchParams.set("of", name);
  link.href = page.href;
  link.textContent = "Show all of it";
}

function search(graph, choose, view, said) {
  const field = document.getElementById("find");
  const offered = document.getElementById("found");
  const matching = () => {
    const sought = field.value.trim().toLowerCase();
    if (!sought) return [];
    const found = [...graph.nodes.keys()].filter((node) => graph.nodes[node].toLowerCase().includes(sought));
    return found.sort((one, other) => graph.nodes[one].length - graph.nodes[other].length);
  };
  field.addEventListener("input", () => {
    offered.replaceChildren(
      ...matching().slice(0, 20).map((node) => {
        const option = document.createElement("option");
        option.value = graph.nodes[node];
        return option;
      }),
    );
  });
  field.addEventListener("change", () => {
    const [first] = matching();
    if (first === undefined) {
      choose(-1);
      if (field.value.trim()) said.textContent = "No service has such a name.";
      return;
    }
    choose(first);
    view.show(first);
  });
}

// ---- zoom and pan

function camera(svg, places) {
  const all = { x: -20, y: -20, width: places.width + 40, height: places.height + 40 };
  let seen = { ...all };
  svg.classList.toggle("low", all.height * 3 < all.width);
  let dragged = false;
  const scale = () => Math.min(svg.clientWidth / seen.width, svg.clientHeight / seen.height) || 1;
  const put = () => {
    svg.setAttribute("viewBox", `${seen.x} ${seen.y} ${seen.width} ${seen.height}`);
    svg.classList.toggle("far", scale() < FAR);
  };
  const zoom = (factor, at = { x: seen.x + seen.width / 2, y: seen.y + seen.height / 2 }) => {
    const width = Math.min(Math.max(seen.width * factor, COLUMN), all.width * 4);
    const by = width / seen.width;
    seen = { x: at.x - (at.x - seen.x) * by, y: at.y - (at.y - seen.y) * by, width, height: seen.height * by };
    put();
  };
  const move = (right, down) => {
    seen = { ...seen, x: seen.x + right, y: seen.y + down };
    put();
  };
  const found = {
    in: () => zoom(1 / 1.4),
    out: () => zoom(1.4),
    fit: () => {
      seen = { ...all };
      put();
    },
    show: (node) => {
      const [width, height] = [COLUMN * 4, ROW * 20];
      seen = { x: places.x[node] + WIDE / 2 - width / 2, y: places.y[node] - height / 2, width, height };
      put();
    },
    moved: () => dragged,
  };
  keys(svg, found, (right, down) => move((right * seen.width) / 8, (down * seen.height) / 8));
  wheel(svg, zoom);
  drag(svg, (right, down) => move(-right / scale(), -down / scale()), (was) => (dragged = was));
  found.fit();
  return found;
}

function keys(svg, view, step) {
  const acts = {
    "+": view.in, "=": view.in, "-": view.out, 0: view.fit,
    ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
  };
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(acts, event.key)) return;
    event.preventDefault();
    acts[event.key]();
  });
}

function wheel(svg, zoom) {
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== svg) return; // else the page scrolls
    event.preventDefault();
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    zoom(Math.exp(Math.sign(event.deltaY) * 0.2), point);
  }, { passive: false });
}

function drag(svg, move, moving) {
  let from = null;
  svg.addEventListener("pointerdown", (event) => {
    from = { x: event.clientX, y: event.clientY, far: 0 };
    moving(false);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [right, down] = [event.clientX - from.x, event.clientY - from.y];
    const far = from.far + Math.abs(right) + Math.abs(down);
    if (far > 4) {
      moving(true);
      if (!svg.hasPointerCapture(event.pointerId)) svg.setPointerCapture(event.pointerId);
      move(right, down);
    }
    from = { x: event.clientX, y: event.clientY, far };
  });
  for (const name of ["pointerup", "pointercancel"]) svg.addEventListener(name, () => (from = null));
}
