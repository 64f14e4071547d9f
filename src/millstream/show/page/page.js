"use strict";
// What the page does: one filter for everything, the timeline on its canvas, the graph that can be moved, sorting.
// Rule 1: text reaches the document by textContent alone, never as HTML.
// Rule 2: state changes first, then `apply` or `ask` shows it; nothing is drawn more than once in a frame.
(() => {
  const started = performance.now();
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const root = document.documentElement;
  root.classList.add("js");

  // ---- the data: columns, one entry for each bar ---------------------------------------------------

  const data = JSON.parse(byId("data").textContent);
  const count = data.task.length;
  const total = data.total; // µs
  const begin = new Float64Array(count);
  const end = new Float64Array(count);
  const error = new Int32Array(count).fill(-1);
  for (let i = 0, at = 0; i < count; i++) {
    at += data.begin[i];
    begin[i] = at;
    end[i] = at + data.lasts[i];
  }
  for (const [bar, text] of data.failed) error[bar] = text;
  const kinds = data.kinds; // how each of the states is chosen by the buttons; figures.py says which is which
  const kind = (bar) => kinds[data.state[bar]];
  const counts = new Uint8Array(count).fill(1); // 0 for a map, which spans the attempts of its items
  for (const bar of data.aside) counts[bar] = 0;
  const attempts = count - data.aside.length;
  const idOf = (bar) => {
    const id = data.id[bar], name = data.tasks[data.task[bar]];
    return typeof id === "string" ? id : id ? `${name}#${id}` : name;
  };
  const lowNames = data.tasks.map((name) => name.toLowerCase());
  let lowIds = null; // made when somebody types
  const retried = new Uint8Array(count);
  const again = new Set();
  for (let i = 0; i < count; i++) if (data.attempt[i] > 1) again.add(idOf(i));
  if (again.size) for (let i = 0; i < count; i++) retried[i] = again.has(idOf(i)) ? 1 : 0;

  // ---- times as people say them; html.py says them in the same way -----------------------------------

  const rounded = (number) => number.toFixed(number < 9.995 ? 2 : number < 99.95 ? 1 : 0);
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  function lasted(us) {
    const seconds = us / 1e6;
    if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h ${two((seconds % 3600) / 60)} min`;
    if (seconds >= 60) return `${Math.floor(seconds / 60)} min ${two(seconds % 60)} s`;
    if (seconds >= 0.9995) return `${rounded(seconds)} s`;
    return us >= 999.5 ? `${rounded(us / 1000)} ms` : `${Math.round(us)} µs`;
  }

  // ---- the filter ------------------------------------------------------------------------------------

  const filter = { text: "", kind: "", task: -1 };
  const mask = new Uint8Array(count).fill(1); // 1 for the bars that it lets through
  const rows = all("#rows tbody tr").map((row) => ({
    row, task: Number(row.dataset.t), kinds: row.dataset.kinds.split(" "), order: 0,
  }));
  rows.forEach((each, order) => { each.order = order; });
  // Tasks that the table has no room for are counted and chosen all the same.
  const left = data.left.map(([task, kinds_]) => ({ task, kinds: kinds_.split(" ") }));
  const groups = all(".failure").map((details) => ({ details, task: Number(details.dataset.t) }));
  const nodes = all(".ms-task").map((node) => ({ node, task: Number(node.dataset.key) }));
  const input = byId("filter"), one = byId("one"), found = byId("found"), chips = all(".chip[data-kind]");

  function apply() {
    const { text } = filter;
    const named = lowNames.map((name) => name.includes(text));
    const hasBars = new Uint8Array(data.tasks.length), known = new Set();
    if (text && !lowIds) lowIds = Array.from({ length: count }, (_, bar) => idOf(bar).toLowerCase());
    let passed = 0;
    for (let i = 0; i < count; i++) {
      const task = data.task[i];
      const fits = (filter.task < 0 || filter.task === task) && (named[task] || lowIds[i].includes(text)) &&
        (!filter.kind || (filter.kind === "retried" ? retried[i] : kind(i) === filter.kind));
      mask[i] = fits ? 1 : 0;
      if (!fits) continue;
      passed += counts[i];
      hasBars[task] = 1;
      if (error[i] >= 0) known.add(data.errors[error[i]][2]);
    }
    const visible = applyToRows(named, hasBars);
    applyToRest(visible, known);
    if (filter.task < 0 && document.activeElement === one) input.focus(); // what is hidden cannot keep the focus
    one.hidden = filter.task < 0;
    if (filter.task >= 0) one.firstElementChild.textContent = data.tasks[filter.task];
    for (const chip of chips) chip.setAttribute("aria-pressed", String(chip.dataset.kind === filter.kind));
    found.textContent = isOpen() ? "" : foundText(passed, visible);
    hover(-1); // its bar may be left out now
    seek();
    if (selected >= 0 && !mask[selected]) select(-1);
    ask();
  }

  const counted = (number) => number.toLocaleString("en");
  function foundText(passed, visible) {
    const of = data.known, seen = visible.subarray(0, of).reduce((sum, each) => sum + each, 0);
    const tasks = `${counted(seen)} of ${counted(of)} tasks`;
    return data.traced ? `${tasks} · ${counted(passed)} of ${counted(attempts)} attempts` : tasks;
  }

  const isOpen = () => !filter.text && !filter.kind && filter.task < 0;

  // A row is shown when one of its bars is, or when it fits by itself: a task that never began has no bars.
  function applyToRows(named, hasBars) {
    const visible = hasBars.slice();
    for (const { task, kinds: own } of [...rows, ...left]) {
      const chosen = filter.task < 0 || filter.task === task;
      if (chosen && named[task] && (!filter.kind || own.includes(filter.kind))) visible[task] = 1;
    }
    for (const { row, task } of rows) {
      row.hidden = !visible[task];
      row.classList.toggle("chosen", filter.task === task);
    }
    return visible;
  }

  function applyToRest(visible, known) {
    const withBars = new Set(data.errors.map((text) => text[2]));
    const mayFail = !filter.kind || filter.kind === "failed";
    groups.forEach(({ details, task }, number) => {
      const byTask = task < 0 ? isOpen() : visible[task] && mayFail;
      details.hidden = !(withBars.has(number) ? known.has(number) : byTask);
    });
    for (const { node, task } of nodes) {
      node.classList.toggle("dimmed", !isOpen() && !(visible[task] || filter.task === task));
      node.setAttribute("aria-pressed", String(filter.task === task));
    }
  }

  function only(task) {
    filter.task = filter.task === task ? -1 : task;
    apply();
  }

  function clear() {
    filter.text = filter.kind = input.value = "";
    filter.task = -1;
    look(0, total);
    select(-1);
    apply();
  }

  // Of thousands of rows those that are seen may all be empty: then the first one with a hit is scrolled to.
  function seek() {
    let first = Infinity;
    for (let i = 0; i < count && !isOpen(); i++) {
      if (!mask[i]) continue;
      if (data.row[i] >= view.top && data.row[i] < view.top + box.fit) return;
      first = Math.min(first, data.row[i]);
    }
    if (first < Infinity) scroll(first - view.top);
  }

  input.addEventListener("input", () => {
    filter.text = input.value.trim().toLowerCase();
    apply();
  });
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      filter.kind = chip.dataset.kind;
      apply();
    });
  }
  one.addEventListener("click", () => {
    only(filter.task);
    input.focus();
  });
  for (const { row, task } of rows) row.querySelector(".only").addEventListener("click", () => only(task));

  // ---- the timeline: what is seen ----------------------------------------------------------------------

  const canvas = byId("canvas"), context = canvas.getContext("2d"), tip = byId("tip"), detail = byId("detail");
  const told = byId("told"); // what a screen reader says of the chosen bar: all but the traceback
  const hint = detail.firstElementChild;
  const STRIP = 34, AXIS = 22, TALLEST = 440, SHORTEST_SPAN = Math.min(20, total);
  const STRIP_LABELS = [data.traced ? "at a time" : "tasks", `${data.peak} at most`];
  const view = { from: 0, to: total, top: 0 };
  const box = { width: 0, gutter: 0, row: 22, fit: 1, scale: 1 };
  const TALLEST_ON_PAPER = 840; // no more fits on a sheet
  let onPaper = false;
  let selected = -1, hovered = -1, drag = null, asked = false, colours = {};

  function measure() {
    const width = canvas.parentElement.clientWidth, lines = Math.max(1, data.rows.length);
    box.width = width;
    box.gutter = Math.min(longestLabel() + 14, Math.round(width * (width < 600 ? 0.24 : 0.18)));
    const tallest = onPaper ? TALLEST_ON_PAPER : TALLEST;
    box.row = Math.max(14, Math.min(24, Math.floor(tallest / lines)));
    box.fit = Math.min(lines, Math.floor(tallest / box.row));
    box.scale = window.devicePixelRatio || 1;
    const height = STRIP + AXIS + box.fit * box.row + 4;
    canvas.style.height = `${height}px`;
    const [pixels, lines_] = [Math.round(width * box.scale), Math.round(height * box.scale)];
    if (canvas.width !== pixels || canvas.height !== lines_) [canvas.width, canvas.height] = [pixels, lines_];
    for (const name of ["up", "down"]) document.querySelector(`[data-view=${name}]`).hidden = box.fit >= lines;
    canvas.dataset.left = box.gutter;
    canvas.dataset.top = STRIP + AXIS;
    canvas.dataset.row = box.row;
    ask();
  }

  function longestLabel() {
    context.font = font(11.5);
    const labels = [...STRIP_LABELS, ...data.rows.slice(0, 500)];
    return labels.reduce((most, name) => Math.max(most, context.measureText(name).width), 40);
  }

  const FAMILY = getComputedStyle(document.body).fontFamily;
  const font = (size, weight = 400) => `${weight} ${size}px ${FAMILY}`;
  const span = () => view.to - view.from;
  const room = () => Math.max(1, box.width - box.gutter);
  const xOf = (time) => box.gutter + ((time - view.from) / span()) * room();
  const timeAt = (x) => view.from + ((x - box.gutter) / room()) * span();
  const yOf = (row) => STRIP + AXIS + (row - view.top) * box.row;

  function look(from, to) {
    const wide = Math.min(total, Math.max(SHORTEST_SPAN, to - from));
    view.from = Math.max(0, Math.min(total - wide, from));
    view.to = view.from + wide;
    ask();
  }

  const middle = () => (
    selected >= 0 && inView(selected) ? (begin[selected] + end[selected]) / 2 : (view.from + view.to) / 2
  );

  function zoom(factor, at = middle()) {
    look(at - (at - view.from) * factor, at + (view.to - at) * factor);
  }

  const pan = (share) => look(view.from + span() * share, view.to + span() * share);
  const scroll = (lines) => {
    view.top = Math.max(0, Math.min(data.rows.length - box.fit, view.top + lines));
    ask();
  };
  const inView = (bar) => end[bar] >= view.from && begin[bar] <= view.to;

  function ask() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  }

  // ---- the timeline: drawing ---------------------------------------------------------------------------

  function readColours() {
    const style = getComputedStyle(root);
    const value = (name) => style.getPropertyValue(name).trim();
    colours = { tasks: Array.from({ length: 10 }, (_, number) => value(`--c${number}`)) };
    const names = ["ink", "soft", "line", "faint", "sheet", "ground", "accent", "red", "orange", "grey"];
    for (const name of names) colours[name] = value(`--${name}`);
    colours.hatch = hatch(colours.orange, colours.sheet);
  }

  function hatch(colour, ground) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 6;
    const brush = tile.getContext("2d");
    brush.fillStyle = ground;
    brush.fillRect(0, 0, 6, 6);
    brush.strokeStyle = colour;
    brush.lineWidth = 2.4;
    for (const shift of [-6, 0, 6]) {
      brush.beginPath();
      brush.moveTo(shift - 1, 7);
      brush.lineTo(shift + 7, -1);
      brush.stroke();
    }
    return context.createPattern(tile, "repeat");
  }

  function draw() {
    if (!box.width) return;
    context.setTransform(box.scale, 0, 0, box.scale, 0, 0);
    context.clearRect(0, 0, box.width, canvas.height);
    context.textBaseline = "middle";
    drawStrip();
    drawAxis();
    drawRows();
    drawBars();
    drawDrag();
    tell();
  }

  // How many attempts were under way, over the whole run, in a number of steps.
  const STEPS = 480;
  const load = new Float64Array(STEPS), failing = new Uint8Array(STEPS);
  for (let i = 0; i < count; i++) {
    const wide = total / STEPS, last = Math.min(STEPS - 1, Math.floor(end[i] / wide));
    const first = Math.min(last, Math.floor(begin[i] / wide));
    for (let step = first; counts[i] && step <= last; step++) {
      load[step] += Math.max(0, Math.min(end[i], (step + 1) * wide) - Math.max(begin[i], step * wide)) / wide;
    }
    if (kind(i) === "failed") failing[last] = 1;
  }
  const most = load.reduce((a, b) => Math.max(a, b), 0) || 1;

  function drawStrip() {
    const base = STRIP - 4, high = STRIP - 10, step = room() / STEPS;
    context.fillStyle = colours.ground;
    context.fillRect(box.gutter, 2, room(), base - 2);
    context.beginPath();
    context.moveTo(box.gutter, base);
    load.forEach((value, at) => {
      context.lineTo(box.gutter + at * step, base - (value / most) * high);
      context.lineTo(box.gutter + (at + 1) * step, base - (value / most) * high);
    });
    context.lineTo(box.gutter + room(), base);
    context.globalAlpha = 0.45;
    context.fillStyle = colours.accent;
    context.fill();
    context.globalAlpha = 1;
    context.fillStyle = colours.red;
    failing.forEach((some, at) => {
      if (some) context.fillRect(box.gutter + at * step, base - 3, Math.max(2, step), 3);
    });
    STRIP_LABELS.forEach((text, line) => label(text, 10 + 13 * line, colours.soft));
    if (span() < total) drawWindow(base);
  }

  function drawWindow(base) {
    const left = box.gutter + (view.from / total) * room(), wide = Math.max(2, (span() / total) * room());
    context.globalAlpha = 0.6;
    context.fillStyle = colours.sheet;
    context.fillRect(box.gutter, 2, left - box.gutter, base - 2);
    context.fillRect(left + wide, 2, box.gutter + room() - left - wide, base - 2);
    context.globalAlpha = 1;
    context.strokeStyle = colours.accent;
    context.lineWidth = 1;
    context.strokeRect(left + 0.5, 2.5, wide - 1, base - 3);
  }

  function label(text, y, colour, size = 11) {
    context.font = font(size);
    context.fillStyle = colour;
    context.textAlign = "left";
    let said = text;
    while (said.length > 1 && context.measureText(said).width > box.gutter - 8) {
      said = `…${said.slice(Math.max(2, Math.ceil(said.length * 0.12)))}`; // the end tells workers apart
    }
    context.fillText(said, 0, y);
  }

  const MINUTE = 60, HOUR = 3600, DAY = 86400;
  const UNITS = [
    ...[1, 10, 100, 1e3, 1e4, 1e5].flatMap((power) => [power, 2 * power, 5 * power]), // µs
    ...[1, MINUTE].flatMap((unit) => [1, 2, 5, 10, 20, 30].map((n) => n * unit * 1e6)),
    ...[1, 2, 3, 6, 12, 24].map((n) => n * HOUR * 1e6),
  ];

  function tickLabel(time, step) {
    if (step >= 1e6 && total > 12e7) {
      const seconds = Math.round(time / 1e6), hours = Math.floor(seconds / 3600);
      return `${hours ? `${hours}:${two((seconds % 3600) / 60)}` : Math.floor(seconds / 60)}:${two(seconds % 60)}`;
    }
    const [unit, size] = view.to >= 1e6 ? ["s", 1e6] : view.to >= 1000 ? ["ms", 1000] : ["µs", 1];
    const digits = Math.max(0, Math.round(Math.log10(size) - Math.floor(Math.log10(step))));
    return `${(time / size).toFixed(digits)} ${unit}`;
  }

  function drawAxis() {
    const day = DAY * 1e6;
    const step = UNITS.find((unit) => (unit / span()) * room() >= 84) || day * Math.ceil(span() / day / 8);
    context.font = font(11);
    context.textAlign = "left";
    for (let time = Math.ceil(view.from / step) * step; time <= view.to; time += step) {
      const x = Math.round(xOf(time)) + 0.5;
      context.fillStyle = colours.line;
      context.fillRect(x - 0.5, STRIP + 4, 1, AXIS + box.fit * box.row);
      context.fillStyle = colours.soft;
      const text = tickLabel(time, step);
      if (x + 4 + context.measureText(text).width <= box.width) context.fillText(text, x + 4, STRIP + 10);
    }
  }

  function drawRows() {
    const low = Math.min(data.rows.length, view.top + box.fit);
    for (let row = view.top; row < low; row++) {
      context.fillStyle = colours.faint;
      context.fillRect(0, yOf(row), box.width, 1);
      label(data.rows[row] || "–", yOf(row) + box.row / 2 + 1, colours.ink, 11.5);
    }
  }

  // Four passes, so that what matters lies on top: what the filter leaves out, what went well, what was
  // stopped, what failed. In one pass a bar is left out when the pixels that it would fill are filled already.
  function drawBars() {
    context.save();
    context.beginPath();
    context.rect(box.gutter, STRIP + AXIS, room(), box.fit * box.row + 2);
    context.clip();
    const passes = [[], [], [], []];
    let shown = 0;
    for (let i = 0; i < count; i++) {
      if (end[i] < view.from) continue;
      if (begin[i] > view.to) break; // they are in the order in which they begin
      shown += mask[i];
      const row = data.row[i];
      if (row < view.top || row >= view.top + box.fit) continue;
      passes[!mask[i] ? 0 : kind(i) === "failed" ? 3 : kind(i) === "cancelled" ? 2 : 1].push(i);
    }
    canvas.dataset.shown = shown;
    passes.forEach(drawPass);
    if (selected >= 0) drawFrame(selected, 2, colours.ink);
    if (hovered >= 0 && hovered !== selected) drawFrame(hovered, 1, colours.ink);
    context.restore();
  }

  function drawPass(bars, pass) {
    const filled = new Float64Array(data.rows.length).fill(-1);
    context.globalAlpha = pass ? 1 : 0.35;
    for (const bar of bars) {
      const row = data.row[bar], left = Math.floor(Math.max(box.gutter - 4, xOf(begin[bar])));
      const right = Math.max(left + 1, Math.min(box.width + 4, xOf(end[bar])));
      if (right <= filled[row]) continue;
      filled[row] = right;
      const wide = right - left > 4 ? right - left - 1 : right - left; // a gap to the next one where there is room
      paint(bar, pass, left, wide);
    }
    context.globalAlpha = 1;
  }

  function paint(bar, pass, left, wide) {
    const pad = pass === 3 ? 1 : 3, top = yOf(data.row[bar]) + pad, high = box.row - 2 * pad + 1;
    const stopped = wide > 3 ? colours.hatch : colours.orange;
    context.fillStyle = [colours.grey, colours.tasks[data.task[bar] % 10], stopped, colours.red][pass];
    if (pass === 1 && kind(bar) === "unfinished") context.fillStyle = faded(context.fillStyle, left, left + wide);
    if (wide < 5) {
      context.fillRect(left, top, wide, high);
      return;
    }
    context.beginPath();
    context.roundRect(left, top, wide, high, 2.5);
    context.fill();
    if (pass === 2) {
      context.strokeStyle = colours.orange;
      context.lineWidth = 1;
      context.stroke();
    }
    if (pass !== 2 && wide > 12 && box.row >= 14) caption(bar, pass, left, wide, top + high / 2);
  }

  // What goes on fades out: where it ends nobody knows.
  function faded(colour, left, right) {
    const fill = context.createLinearGradient(Math.max(left, right - 40), 0, right, 0);
    fill.addColorStop(0, colour);
    fill.addColorStop(1, colours.sheet);
    return fill;
  }

  function caption(bar, pass, left, wide, middle) {
    const start = Math.max(left, box.gutter), name = (pass === 3 ? "✕ " : "") + idOf(bar);
    context.font = font(Math.min(11, box.row - 5), 500);
    const letters = Math.floor((left + wide - start - 8) / 6.4);
    context.fillStyle = pass ? "#fff" : colours.ink;
    if (letters < name.length && letters < 6) {
      if (pass === 3) context.fillText("✕", start + 3, middle + 0.5);
      return;
    }
    context.fillText(letters < name.length ? `${name.slice(0, letters - 1)}…` : name, start + 5, middle + 0.5);
  }

  function drawFrame(bar, thick, colour) {
    const left = Math.floor(xOf(begin[bar])), wide = Math.max(3, xOf(end[bar]) - left);
    context.strokeStyle = colours.sheet;
    context.lineWidth = thick + 2;
    context.strokeRect(left - 1, yOf(data.row[bar]) + 1.5, wide + 1, box.row - 2);
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.strokeRect(left - 1, yOf(data.row[bar]) + 1.5, wide + 1, box.row - 2);
  }

  function drawDrag() {
    if (!drag || !drag.moved) return;
    const [left, right] = [Math.max(box.gutter, Math.min(drag.x, drag.now)), Math.max(drag.x, drag.now)];
    context.fillStyle = colours.accent;
    context.globalAlpha = 0.2;
    context.fillRect(left, drag.strip ? 0 : STRIP, right - left, drag.strip ? STRIP : canvas.height);
    context.globalAlpha = 1;
    if (drag.strip) return;
    context.font = font(11, 600);
    context.fillText(lasted(timeAt(right) - timeAt(left)), left + 4, STRIP + AXIS + 10);
  }

  function tell() {
    canvas.dataset.from = view.from / 1e6;
    canvas.dataset.to = view.to / 1e6;
    canvas.dataset.selected = selected < 0 ? "" : idOf(selected);
  }

  // ---- the timeline: details -----------------------------------------------------------------------------

  const facts = (bar) => [
    ["Task run", idOf(bar)],
    ["Task", data.tasks[data.task[bar]]],
    ["Attempt", String(data.attempt[bar])],
    ["Status", data.states[data.state[bar]].toLowerCase()],
    [data.traced ? "Worker" : "Row", data.rows[data.row[bar]] || "–"],
    ["Began", `+${lasted(begin[bar])}`],
    ["Took", kind(bar) === "unfinished" ? "has not ended" : lasted(end[bar] - begin[bar])],
  ];

  function made(tag, text, name) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  }

  function select(bar) {
    selected = bar;
    told.textContent = bar < 0 ? "" : facts(bar).map((pair) => pair.join(": ")).concat(errorLine(bar)).join(", ");
    if (bar < 0) {
      detail.replaceChildren(hint);
      ask();
      return;
    }
    const list = made("dl");
    for (const [what, value] of facts(bar)) {
      const pair = made("div");
      pair.append(made("dt", what), made("dd", value));
      list.append(pair);
    }
    detail.replaceChildren(list, ...why(bar));
    if (begin[bar] > view.to || end[bar] < view.from) {
      const centre = (begin[bar] + end[bar]) / 2;
      look(centre - span() / 2, centre + span() / 2);
    }
    if (data.row[bar] < view.top) scroll(data.row[bar] - view.top);
    if (data.row[bar] >= view.top + box.fit) scroll(data.row[bar] - view.top - box.fit + 1);
    ask();
  }

  const errorLine = (bar) => (error[bar] < 0 ? [] : [data.errors[error[bar]].slice(0, 2).join(": ")]);

  function why(bar) {
    if (error[bar] < 0) return [];
    const [type, line, group] = data.errors[error[bar]];
    const said = made("p", undefined, "why");
    said.append(made("b", type, "bad"), line === type ? "" : ` ${line}`);
    const whole = group < 0 ? null : document.querySelector(`#failure-${group} pre`);
    return whole ? [said, made("pre", whole.textContent)] : [said];
  }

  function step(way) {
    let at = selected;
    if (at < 0) at = way > 0 ? begin.findIndex((_, bar) => mask[bar] && inView(bar)) - 1 : count;
    if (at < -1) at = -1;
    for (at += way; at >= 0 && at < count; at += way) if (mask[at]) return select(at);
    return undefined;
  }

  // The bar at a place, or one within three pixels of it: the nearest, of those the one that lies on top.
  function barAt(x, y) {
    const row = view.top + Math.floor((y - STRIP - AXIS) / box.row);
    if (x < box.gutter || y < STRIP + AXIS || row >= view.top + box.fit) return -1;
    let best = -1, least = 4;
    for (let i = 0; i < count && begin[i] <= view.to; i++) {
      if (data.row[i] !== row || end[i] < view.from || !mask[i]) continue;
      const away = Math.max(0, xOf(begin[i]) - x, x - Math.max(xOf(end[i]), xOf(begin[i]) + 1));
      if (away < least || (away === least && kind(i) === "failed")) [best, least] = [i, away];
    }
    return best;
  }

  function hover(bar, x, y) {
    if (bar !== hovered) ask();
    hovered = bar;
    tip.hidden = bar < 0;
    if (bar < 0) return;
    const attempt = data.attempt[bar] > 1 ? `, attempt ${data.attempt[bar]}` : "";
    const state = data.states[data.state[bar]].toLowerCase();
    const took = kind(bar) === "unfinished" ? "has not ended" : lasted(end[bar] - begin[bar]);
    const lines = [idOf(bar) + attempt, `${state} · ${took} · from +${lasted(begin[bar])}`];
    lines.push(...errorLine(bar));
    tip.textContent = lines.join("\n");
    const left = Math.max(0, Math.min(box.width - tip.offsetWidth, x + 14));
    tip.style.transform = `translate(${left}px, ${y + 16}px)`;
  }

  // ---- the timeline: hands ---------------------------------------------------------------------------------

  const place = (event) => {
    const edge = canvas.getBoundingClientRect();
    return [event.clientX - edge.left, event.clientY - edge.top];
  };

  const NEAR = 4; // pixels: less is a click
  const turned = (event) => 1.0015 ** (event.deltaY * (event.deltaMode ? 20 : 1)); // some mice count lines, not pixels

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const [x, y] = place(event);
    drag = { x, now: x, strip: y < STRIP, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (!drag) return hover(barAt(x, y), x, y);
    drag.now = Math.max(box.gutter, Math.min(box.width, x));
    drag.moved ||= Math.abs(x - drag.x) > NEAR;
    hover(-1);
    return ask();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const [x, y] = place(event), { strip, moved } = drag, far = Math.abs(x - drag.x) > NEAR;
    const [left, right] = [Math.max(box.gutter, Math.min(drag.x, drag.now)), Math.max(drag.x, drag.now)];
    const at = strip ? (place_) => ((place_ - box.gutter) / room()) * total : timeAt;
    drag = null;
    if (far) look(at(left), at(right));
    else if (moved) ask(); // it came back: nothing is meant
    else if (strip) look(at(x) - span() / 2, at(x) + span() / 2);
    else select(barAt(x, y));
    ask();
  });
  canvas.addEventListener("pointercancel", () => { drag = null; ask(); });
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("dblclick", () => look(0, total));
  canvas.addEventListener("wheel", (event) => {
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (event.ctrlKey || event.metaKey) zoom(turned(event), timeAt(Math.max(box.gutter, place(event)[0])));
    else if (event.shiftKey && box.fit < data.rows.length) scroll(Math.sign(event.deltaX + event.deltaY) * 3);
    else if (sideways && span() < total) pan(event.deltaX / room());
    else return;
    event.preventDefault();
  }, { passive: false });

  const MOVES = {
    "in": () => zoom(0.5), out: () => zoom(2), reset: () => look(0, total),
    left: () => pan(-0.2), right: () => pan(0.2),
    up: () => scroll(-1), down: () => scroll(1), pageUp: () => scroll(-box.fit), pageDown: () => scroll(box.fit), next: () => step(1), previous: () => step(-1),
  };
  const KEYS = {
    "+": "in", "=": "in", "-": "out", "−": "out", 0: "reset",
    ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down",
    PageUp: "pageUp", PageDown: "pageDown", n: "next", p: "previous", N: "next", P: "previous",
  };
  const ROWS = ["up", "down", "pageUp", "pageDown"];
  canvas.addEventListener("keydown", (event) => {
    const move = KEYS[event.key];
    const idle = ROWS.includes(move) && box.fit >= data.rows.length; // then they scroll the page
    if (!move || idle || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    MOVES[move]();
  });
  for (const button of all("[data-view]")) button.addEventListener("click", () => MOVES[button.dataset.view]());

  // ---- the graph: a window on the drawing that is moved and sized --------------------------------------------

  const pane = byId("pane"), svg = pane && pane.querySelector("svg");
  const READABLE = 1.6; // units of the drawing in a pixel: with more of them nobody can read it

  function moveGraph() {
    const { x: left, y: top, width, height } = svg.viewBox.baseVal;
    const seen = { x: left, y: top, scale: 1 }; // the upper left corner of the window, and units in a pixel
    const beginning = firstHeight();
    let fitted = READABLE; // how it was fitted; 0 after somebody moved it

    function show() {
      if (onPaper) return;
      const [wide, high] = [pane.clientWidth * seen.scale, pane.clientHeight * seen.scale];
      svg.setAttribute("viewBox", `${seen.x} ${seen.y} ${wide} ${high}`);
    }

    function move(x, y) {
      fitted = 0;
      seen.x += x * seen.scale;
      seen.y += y * seen.scale;
      show();
    }

    // What is at a place of the pane, its middle as a rule, stays there.
    function resize(factor, x = pane.clientWidth / 2, y = pane.clientHeight / 2) {
      const scale = Math.max(0.1, Math.min(40, seen.scale * factor));
      seen.x += x * (seen.scale - scale);
      seen.y += y * (seen.scale - scale);
      seen.scale = scale;
      fitted = 0;
      show();
    }

    // No larger than real: a graph of two tasks would fill the pane with giants. Of what does not fit even at `most`
    // units in a pixel, the left end is seen, with the task that it begins with in the vertical middle.
    function fit(most) {
      const [wide, high] = [pane.clientWidth || 1, pane.clientHeight || 1];
      seen.scale = Math.max(1, Math.min(most, Math.max(width / wide, height / high)));
      seen.x = left - Math.max(0, wide * seen.scale - width) / 2;
      const spare = height - high * seen.scale; // what is not seen of the height
      seen.y = top + (spare < 0 ? spare / 2 : Math.max(0, Math.min(spare, beginning - high * seen.scale / 2)));
      fitted = most;
      show();
    }

    // On paper all of it is seen, as large as the sheet allows.
    function print() {
      if (onPaper) svg.setAttribute("viewBox", `${left} ${top} ${width} ${height}`);
      else show();
    }

    pane.style.height = `${Math.max(90, Math.min(520, height + 2))}px`;
    new ResizeObserver(() => (fitted ? fit(fitted) : show())).observe(pane);
    return { move, resize, fit, print, real: () => resize(1 / seen.scale) };
  }

  // How far down the task stands that the drawing begins with: of those that nothing leads to, the middle one.
  function firstHeight() {
    const entered = new Set(all(".ms-edge[data-target]", svg).map((edge) => edge.dataset.target));
    const roots = nodes.filter(({ node }) => !entered.has(node.dataset.task));
    const boxes = (roots.length ? roots : nodes).map(({ node }) => node.getBBox());
    const first = boxes.reduce((least, each) => Math.min(least, each.x), Infinity);
    const heights = boxes.filter((each) => each.x < first + 60).map((each) => each.y + each.height / 2);
    heights.sort((a, b) => a - b);
    return heights[heights.length >> 1] || 0;
  }

  function choose(node) {
    only(Number(node.dataset.key));
  }

  function listenToGraph({ move, resize, fit, real }) {
    const moves = {
      "in": () => resize(0.7), out: () => resize(1 / 0.7), fit: () => fit(Infinity), real,
      left: () => move(-60, 0), right: () => move(60, 0), up: () => move(0, -60), down: () => move(0, 60),
    };
    const keys = { ...KEYS, 0: "fit", 1: "real" };
    for (const button of all("[data-graph]")) button.addEventListener("click", () => moves[button.dataset.graph]());
    pane.addEventListener("dblclick", () => fit(Infinity));
    pane.addEventListener("keydown", (event) => {
      const node = event.target.closest(".ms-task"), act = moves[keys[event.key]];
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (node && (event.key === "Enter" || event.key === " ")) choose(node);
      else if (act) act();
      else return;
      event.preventDefault();
    });
    pane.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const edge = pane.getBoundingClientRect();
      resize(turned(event), event.clientX - edge.left, event.clientY - edge.top);
    }, { passive: false });
    dragGraph(move);
  }

  function dragGraph(move) {
    let held = null;
    const drop = () => {
      held = null;
      pane.classList.remove("held");
    };
    pane.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      held = { x: event.clientX, y: event.clientY, moved: false, node: event.target.closest(".ms-task") };
    });
    pane.addEventListener("pointermove", (event) => {
      if (!held || !(event.buttons & 1)) return;
      const [x, y] = [event.clientX - held.x, event.clientY - held.y];
      if (!held.moved && Math.hypot(x, y) < 5) return;
      if (!held.moved) pane.setPointerCapture(event.pointerId);
      pane.classList.add("held");
      move(-x, -y);
      Object.assign(held, { x: event.clientX, y: event.clientY, moved: true });
    });
    pane.addEventListener("pointerup", () => {
      if (held && !held.moved && held.node) choose(held.node);
      drop();
    });
    pane.addEventListener("pointercancel", drop);
    // A task that is reached with the Tab key is moved into the window.
    pane.addEventListener("focusin", (event) => {
      const node = event.target.closest(".ms-task");
      pane.scrollTo(0, 0); // a browser may have scrolled to it by itself
      if (!node || held) return;
      const inner = node.getBoundingClientRect(), outer = pane.getBoundingClientRect();
      const x = (inner.left + inner.right - outer.left - outer.right) / 2; // from middle to middle
      const y = (inner.top + inner.bottom - outer.top - outer.bottom) / 2;
      const [roomX, roomY] = [(outer.width - inner.width) / 2, (outer.height - inner.height) / 2];
      if (Math.abs(x) > roomX || Math.abs(y) > roomY) move(x, y);
    });
  }

  for (const { node } of nodes) node.setAttribute("role", "button");
  const graph = svg && nodes.length ? moveGraph() : null;
  if (graph) listenToGraph(graph);

  // ---- sorting ---------------------------------------------------------------------------------------------

  const heads = all("#rows thead th");
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const isNumber = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const way = before ? (before === "ascending" ? -1 : 1) : isNumber ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      sort(column, way, isNumber);
    });
  });

  // What has no number comes last, whichever way the others go.
  function sort(column, way, isNumber) {
    const words = new Intl.Collator("en", { numeric: true });
    for (const each of rows) {
      const cell = each.row.cells[column];
      each.key = !isNumber ? cell.textContent : cell.dataset.v === undefined ? null : Number(cell.dataset.v);
    }
    rows.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.order - b.order;
      return way * (isNumber ? a.key - b.key : words.compare(a.key, b.key)) || a.order - b.order;
    });
    document.querySelector("#rows tbody").append(...rows.map((each) => each.row));
  }

  // ---- colours, keys, the start --------------------------------------------------------------------------------

  const darkness = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (darkness.matches ? "dark" : "light")) === "dark";
  function repaint() {
    byId("theme").textContent = isDark() ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
    readColours();
    ask();
  }
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    repaint();
  });
  darkness.addEventListener("change", repaint);

  // What a reader of the paper has to know: that a filter was on, and which part of the timeline there is.
  function said() {
    const chosen = [filter.text && `“${input.value.trim()}”`, filter.kind, filter.task < 0 ? "" : data.tasks[filter.task]];
    const parts = isOpen() ? [] : [`Filtered by ${chosen.filter(Boolean).join(", ")}: ${found.textContent}.`];
    if (span() < total) parts.push(`Timeline from +${lasted(view.from)} to +${lasted(view.to)}.`);
    if (box.fit < data.rows.length) parts.push(`Rows 1 to ${box.fit} of ${counted(data.rows.length)} of the timeline.`);
    return parts.join(" ");
  }

  // Paper is white, whatever the screen is. The canvas has to be drawn before the event is over.
  let ofScreen, topOfScreen = 0;
  matchMedia("print").addEventListener("change", (event) => {
    onPaper = event.matches;
    if (graph) graph.print();
    if (onPaper) topOfScreen = view.top;
    view.top = onPaper ? 0 : topOfScreen;
    measure();
    byId("printed").textContent = onPaper ? said() : "";
    if (event.matches) ofScreen = root.dataset.theme;
    if (event.matches) root.dataset.theme = "light";
    else if (ofScreen === undefined) delete root.dataset.theme;
    else root.dataset.theme = ofScreen;
    repaint();
    draw();
  });

  const keys = byId("keys");
  byId("help").addEventListener("click", () => keys.showModal());
  byId("close").addEventListener("click", () => keys.close());
  document.addEventListener("keydown", (event) => {
    if (keys.open || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target === input;
    if (event.key === "Escape" && drag) drag = null, ask();
    else if (event.key === "Escape") clear();
    else if (event.key === "/" && !typing) input.focus();
    else if (event.key === "?" && !typing) keys.showModal();
    else return;
    event.preventDefault();
  });

  // The bar covers what is scrolled to, by its own height, which depends on how its parts wrap.
  const bar_ = byId("bar");
  function clearOfBar() {
    const sticks = getComputedStyle(bar_).position === "sticky";
    root.style.scrollPaddingTop = `${(sticks ? bar_.offsetHeight : 0) + 8}px`;
  }
  new ResizeObserver(clearOfBar).observe(bar_);
  clearOfBar();

  repaint();
  new ResizeObserver(measure).observe(canvas.parentElement);
  measure();
  apply();
  root.dataset.ready = Math.round(performance.now() - started); // milliseconds; the tests wait for it
})();
