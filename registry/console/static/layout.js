// The places of a graph's nodes: layers from callers (left) to callees (right), ordered so that few edges cross.
// Pure functions: numbers in, numbers out. `calls` has pairs [caller, callee, …] of places in the list of nodes.

const SWEEPS = 6;
export const COLUMN = 260;
export const ROW = 30;
const MOST = 24; // layers; a deeper graph, such as a cycle of all services, shares them out
const TALLEST = 60; // rows of a column; a layer with more nodes gets several columns

/** The neighbours of each of `size` nodes: {out, in}, without loops. */
export function neighbours(size, calls) {
  const out = Array.from({ length: size }, () => []);
  const into = Array.from({ length: size }, () => []);
  for (const [caller, callee] of calls) {
    if (caller === callee) continue;
    out[caller].push(callee);
    into[callee].push(caller);
  }
  return { out, in: into };
}

/** The nodes in an order in which each caller stands before its callees, but for calls that close a cycle: these are
 * in `back`, as "caller,callee". */
function ordered(out, into) {
  const state = new Uint8Array(out.length); // 0 new, 1 on the path, 2 done
  const back = new Set();
  const done = [];
  const roots = [...out.keys()].sort((one, other) => into[one].length - into[other].length || one - other);
  for (const root of roots) {
    if (state[root]) continue;
    const path = [[root, 0]];
    state[root] = 1;
    while (path.length) {
      const top = path.at(-1);
      const [node, next] = top;
      if (next === out[node].length) {
        state[node] = 2;
        done.push(node);
        path.pop();
        continue;
      }
      top[1] += 1;
      const callee = out[node][next];
      if (state[callee] === 1) back.add(`${node},${callee}`);
      if (state[callee] === 0) {
        state[callee] = 1;
        path.push([callee, 0]);
      }
    }
  }
  return { order: done.reverse(), back };
}

/** The layer of each node: later than that of its last caller, cycles left aside. In a graph of more than `MOST` layers
 * neighbours may share one. */
export function layers({ out, in: into }) {
  const { order, back } = ordered(out, into);
  const layer = new Int32Array(out.length);
  for (const node of order) {
    for (const callee of out[node]) {
      if (!back.has(`${node},${callee}`)) layer[callee] = Math.max(layer[callee], layer[node] + 1);
    }
  }
  const deep = layer.reduce((most, number) => Math.max(most, number + 1), 0);
  return deep <= MOST ? layer : layer.map((number) => Math.floor((number * MOST) / deep));
}

/** The nodes of each layer, ordered by the mean place of their neighbours (the barycentre method). */
function rows(layer, { out, in: into }) {
  const found = [];
  layer.forEach((number, node) => (found[number] ??= []).push(node));
  const place = new Float64Array(layer.length);
  const settle = (nodes) => nodes.forEach((node, index) => (place[node] = (index + 0.5) / nodes.length));
  found.forEach(settle);
  const weight = new Float64Array(layer.length);
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const forward = sweep % 2 === 0;
    const near = forward ? into : out;
    for (const nodes of forward ? found : found.toReversed?.() ?? [...found].reverse()) {
      for (const node of nodes) {
        const sum = near[node].reduce((total, other) => total + place[other], 0);
        weight[node] = near[node].length ? sum / near[node].length : place[node];
      }
      nodes.sort((one, other) => weight[one] - weight[other] || one - other);
      settle(nodes);
    }
  }
  return found;
}

/** The places of `size` nodes: {x, y, width, height}, with x and y by node. */
export function layout(size, calls) {
  const near = neighbours(size, calls);
  const x = new Float64Array(size);
  const y = new Float64Array(size);
  let column = 0;
  let tallest = 1;
  for (const nodes of size ? rows(layers(near), near) : []) {
    const columns = Math.ceil(nodes.length / Math.max(TALLEST, Math.ceil(Math.sqrt(size) * 2)));
    const height = Math.ceil(nodes.length / columns);
    nodes.forEach((node, index) => {
      x[node] = (column + Math.floor(index / height)) * COLUMN;
      y[node] = (index % height) * ROW - (Math.min(height, nodes.length) * ROW) / 2;
    });
    column += columns;
    tallest = Math.max(tallest, height);
  }
  for (let node = 0; node < size; node += 1) y[node] += (tallest * ROW) / 2;
  return { x, y, width: Math.max(1, column) * COLUMN, height: tallest * ROW };
}

/** All nodes that `start` reaches. A callee of `anyone` (the place of "*"; -1 for none) is called by all but those nodes
 * that are `foreign`. */
export function reach(start, { out }, anyone, foreign = () => false) {
  const found = new Set();
  const waiting = [start];
  let open = anyone >= 0; // the callees of anyone are not reached yet
  while (waiting.length) {
    const caller = waiting.pop();
    if (open && !foreign(caller)) {
      open = false;
      waiting.push(anyone);
    }
    for (const callee of out[caller]) {
      if (callee === start || found.has(callee)) continue;
      found.add(callee);
      waiting.push(callee);
    }
  }
  return found;
}
