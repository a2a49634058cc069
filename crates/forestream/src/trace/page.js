"use strict";
// Texts of the model and the user reach the page as text nodes only, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const STAGE_MEANING = {
  draft: "the drafter guesses how the text goes on",
  streams: "the model's own speculative streams run for the drafter",
  cut: "of the guesses, those that are likely enough to pay are kept (the budget)",
  forward: "the model's layers run over the whole tree",
  logits: "the model's last matrix: how probable each next token is, at every node",
  commit: "the tree is compared with what the model writes, and the accepted branch is kept",
  learn: "the drafter learns from the result",
};
const NUM_TINTS = 5;
const byId = (id) => document.getElementById(id);
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const plural = (count, word, words = `${word}s`) => `${count} ${count === 1 ? word : words}`;
const numAccepted = (pass) => Math.max(0, pass.emitted.length - 1);
// A stop token that was guessed: the model's own token and a guess in one.
const guessedEnd = (pass) => pass.nodes.findIndex((node, index) => node.kind === "accepted" && !pass.path.includes(index));
const rounds = data.passes.filter((pass) => !pass.is_prompt);
let chosen = -1;

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function percent(part, whole) {
  if (whole <= 0) return "";
  return part > 0 && part < 0.005 * whole ? "< 1 %" : `${((100 * part) / whole).toFixed(0)} %`;
}

function milliseconds(number) {
  if (number >= 1000) return `${(number / 1000).toFixed(2)} s`;
  return `${number.toFixed(number < 10 ? 2 : 1)} ms`;
}

// A token for a chip: what cannot be seen is drawn.
function visible(text) {
  const shown = text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
  if (shown === "") return "∅";
  return shown.length > 24 ? `${shown.slice(0, 23)}…` : shown;
}

function passName(index) {
  const numPrompts = data.passes[0]?.is_prompt ? 1 : 0;
  return data.passes[index].is_prompt ? "prompt" : `pass ${index + 1 - numPrompts} of ${data.passes.length - numPrompts}`;
}

// ---- figures and the answer

function showFigures() {
  const emitted = sum(rounds.map((pass) => pass.emitted.length));
  const drafted = sum(rounds.map((pass) => Math.max(0, pass.nodes.length - 1)));
  const accepted = sum(rounds.map(numAccepted));
  const time = sum(rounds.map((pass) => sum(pass.times)));
  const figure = (value, meaning) => element("div", "figure", element("b", "", value), element("span", "", meaning));
  byId("about").textContent = `${data.model} · strategy ${data.strategy} · seed ${data.seed} · ${plural(data.threads, "thread")}`;
  byId("figures").append(
    figure(String(data.passes.flatMap((pass) => pass.emitted).filter((token) => !token.is_dropped).length), "tokens in the answer"),
    figure(String(rounds.length), "passes after the prompt"),
    figure(rounds.length ? (emitted / rounds.length).toFixed(2) : "–", "tokens per pass (1 without drafts)"),
    figure(drafted ? percent(accepted, drafted) : "–", `of ${drafted} guesses accepted`),
    figure(time ? (emitted / (time / 1000)).toFixed(0) : "–", "tokens per second in passes"),
  );
  byId("made-by").textContent = `Made by forestream ${data.version}. The page is complete in itself and loads nothing.`;
}

function tokenElement(token, isOwn) {
  const made = element("span", isOwn ? "own" : "");
  if (token.is_special) {
    made.append(element("span", "special", token.piece));
    return made;
  }
  token.text.split("\n").forEach((line, index) => {
    if (index > 0) made.append(element("span", "newline"), "\n");
    made.append(line);
  });
  return made;
}

function showAnswer() {
  data.passes.forEach((pass, index) => {
    const made = element("span", `token tint${index % NUM_TINTS}`);
    pass.emitted.forEach((token, place) => {
      if (!token.is_dropped) made.append(tokenElement(token, place === pass.emitted.length - 1));
    });
    made.title = `${passName(index)}: ${plural(numAccepted(pass), "accepted guess", "accepted guesses")} and one token of its own`;
    made.addEventListener("click", () => choose(index));
    byId("answer").append(made);
  });
  if (data.passes.length === 0) byId("answer").append("Nothing was generated.");
  byId("prompt").textContent = data.prompt;
}

// ---- one pass

// The nodes as a tree of objects, the accepted child of each first, and the model's own token at the end of the path, unless
// it is there as a guess.
function treeOf(pass) {
  const nodes = pass.nodes.map((node) => ({ label: visible(node.text), score: node.score, children: [], kind: node.kind }));
  pass.nodes.forEach((node, index) => {
    if (node.parent === null) return;
    const siblings = nodes[node.parent].children;
    if (nodes[index].kind === "accepted") siblings.unshift(nodes[index]);
    else siblings.push(nodes[index]);
  });
  if (guessedEnd(pass) < 0) {
    const own = { label: visible(pass.emitted.at(-1).piece), children: [], kind: "own" };
    nodes[pass.path.at(-1)].children.unshift(own);
  }
  return nodes[0];
}

// Gives every node its depth and row; a first child stays in its parent's row.
function layOut(node, depth, row, placed) {
  node.depth = depth;
  node.row = row;
  placed.push(node);
  let next = row;
  node.children.forEach((child, index) => {
    if (index > 0) next += 1;
    child.parent = node;
    next = layOut(child, depth + 1, next, placed);
  });
  return next;
}

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawTree(pass) {
  const [rowHeight, gap, boxHeight, margin] = [46, 36, 24, 4];
  const placed = [];
  const numRows = layOut(treeOf(pass), 0, 0, placed) + 1;
  const measure = document.createElement("canvas").getContext("2d");
  measure.font = "13px ui-monospace, monospace";
  const widths = [];
  placed.forEach((node) => {
    node.width = Math.ceil(measure.measureText(node.label).width) + 16;
    widths[node.depth] = Math.max(widths[node.depth] ?? 0, node.width);
  });
  const left = widths.map((_, depth) => margin + sum(widths.slice(0, depth)) + gap * depth);
  const width = left.at(-1) + widths.at(-1) + margin;
  const drawing = svg("svg", { width, height: numRows * rowHeight, role: "img", "aria-label": "draft tree" });
  placed.forEach((node) => {
    node.x = left[node.depth];
    node.y = margin + node.row * rowHeight;
    if (!node.parent) return;
    const [x1, y1] = [node.parent.x + node.parent.width, node.parent.y + boxHeight / 2];
    const [x2, y2] = [node.x, node.y + boxHeight / 2];
    const middle = x2 - gap / 2;
    const line = `M${x1} ${y1} H${middle - gap / 4} C${middle} ${y1} ${middle - gap / 4} ${y2} ${middle} ${y2} H${x2}`;
    drawing.append(svg("path", { d: line, class: node.kind }));
  });
  placed.forEach((node) => {
    const group = svg("g", { class: node.kind });
    group.append(
      svg("rect", { x: node.x, y: node.y, width: node.width, height: boxHeight, rx: 5 }),
      svg("text", { x: node.x + 8, y: node.y + 16.5, class: "label" }, node.label),
    );
    if (node.score !== undefined && node.kind !== "root") {
      group.append(svg("text", { x: node.x + 8, y: node.y + boxHeight + 12, class: "score" }, percent(node.score, 1)));
    }
    drawing.append(group);
  });
  return drawing;
}

function sentenceOf(pass) {
  const own = `“${visible(pass.emitted.at(-1).piece)}”`;
  if (pass.is_prompt) return `The model read the ${data.prompt_tokens} tokens of the prompt and wrote its first token, ${own}.`;
  const drafted = pass.nodes.length - 1;
  if (drafted === 0) return `Nothing was guessed, and the model wrote ${own} alone.`;
  const dropped = pass.num_proposed - drafted;
  const guesses = drafted === 1 ? "One guess was" : `${drafted} guesses were`;
  const cut = dropped > 0 ? ` (${dropped} more were beyond the budget)` : "";
  const accepted = pass.emitted.slice(0, -1).map((token) => `“${visible(token.piece)}”`).join(" ");
  const isGuessed = guessedEnd(pass) >= 0;
  const right = accepted === "" ? (isGuessed ? "" : ", none was right") : `, ${numAccepted(pass)} accepted: ${accepted}`;
  const last = isGuessed ? `The model's own token ends the text and had been guessed too: ${own}.`
    : `${accepted === "" ? "The" : "Then the"} model's own token: ${own}.`;
  return `${guesses} checked${cut}${right}. ${last}${droppedSentence(pass)}`;
}

function droppedSentence(pass) {
  const numDropped = pass.emitted.filter((token) => token.is_dropped).length;
  if (numDropped === 0) return "";
  return ` The answer ended before the last ${numDropped === 1 ? "token" : `${numDropped} tokens`} of this pass.`;
}

function timeBar(times) {
  const bar = element("div", "bar");
  const keys = element("div", "keys");
  times.forEach((time, stage) => {
    if (time <= 0) return;
    const part = element("span", "");
    part.style.cssText = `flex: ${time} 0 0; background: var(--stage${stage})`;
    part.title = `${data.stages[stage]}: ${milliseconds(time)}`;
    bar.append(part);
    const swatch = element("span", "swatch");
    swatch.style.background = `var(--stage${stage})`;
    keys.append(element("span", "", swatch, part.title));
  });
  return element("div", "", bar, keys);
}

function choose(index) {
  if (index < 0 || index >= data.passes.length || index === chosen) return;
  const pass = data.passes[index];
  [byId("answer"), byId("columns")].forEach((parent) => {
    parent.children[chosen]?.classList.remove("chosen");
    parent.children[index].classList.add("chosen");
  });
  chosen = index;
  byId("slider").value = index;
  byId("number").textContent = `${passName(index)}, ${milliseconds(sum(pass.times))}`;
  byId("sentence").textContent = sentenceOf(pass);
  byId("tree").replaceChildren(...(pass.nodes.length ? [drawTree(pass)] : []));
  byId("tree-note").hidden = pass.nodes.length < 2;
  byId("pass-times").replaceChildren(timeBar(pass.times));
}

// ---- all passes

function showColumns() {
  data.passes.forEach((pass, index) => {
    const column = element("button", "column", ...pass.emitted.map(() => element("i", "")));
    column.type = "button";
    column.title = `${passName(index)}: ${plural(pass.emitted.length, "token")}, ${milliseconds(sum(pass.times))}`;
    column.setAttribute("aria-label", column.title);
    column.addEventListener("click", () => choose(index));
    byId("columns").append(column);
  });
}

function row(kind, ...cells) {
  return element("tr", "", ...cells.map((cell) => (cell instanceof Node ? cell : element(kind, "", String(cell)))));
}

function showTimes() {
  const totals = data.stages.map((_, stage) => sum(rounds.map((pass) => pass.times[stage])));
  const total = sum(totals);
  byId("time-bar").append(timeBar(totals));
  const table = byId("time-table");
  table.append(row("th", "stage", "per pass", "share", element("td", "")));
  totals.forEach((time, stage) => {
    if (time <= 0) return;
    const swatch = element("span", "swatch");
    swatch.style.background = `var(--stage${stage})`;
    const name = element("td", "", swatch, data.stages[stage]);
    const meaning = element("td", "words", STAGE_MEANING[data.stages[stage]] ?? "");
    table.append(row("td", name, milliseconds(time / rounds.length), percent(time, total), meaning));
  });
  const read = sum(data.passes.filter((pass) => pass.is_prompt).map((pass) => sum(pass.times)));
  const about = element("td", "words", `${plural(rounds.length, "pass", "passes")}; reading the prompt took ${milliseconds(read)} before them`);
  table.append(row("td", "all", milliseconds(rounds.length ? total / rounds.length : 0), milliseconds(total), about));
}

function showDepths() {
  const [proposed, accepted] = [[], []];
  rounds.forEach((pass) => {
    const depths = [];
    pass.nodes.forEach((node, index) => { depths[index] = node.parent === null ? 0 : depths[node.parent] + 1; });
    for (let depth = 1; depth <= Math.max(0, ...depths); depth += 1) {
      proposed[depth] = (proposed[depth] ?? 0) + 1;
      accepted[depth] = (accepted[depth] ?? 0) + (numAccepted(pass) >= depth ? 1 : 0);
    }
  });
  const table = byId("depth-table");
  if (proposed.length === 0) {
    table.append(row("td", "No pass proposed anything."));
    return;
  }
  table.append(row("th", "depth", "proposed", "accepted", "share", element("th", "")));
  for (let depth = 1; depth < proposed.length; depth += 1) {
    const fill = element("span", "");
    fill.style.width = `${(100 * accepted[depth]) / proposed[depth]}%`;
    const meter = element("td", "meter", fill);
    table.append(row("td", depth, proposed[depth], accepted[depth], percent(accepted[depth], proposed[depth]), meter));
  }
}

function showControls() {
  byId("slider").max = Math.max(0, data.passes.length - 1);
  byId("slider").addEventListener("input", (event) => choose(Number(event.target.value)));
  byId("previous").addEventListener("click", () => choose(chosen - 1));
  byId("next").addEventListener("click", () => choose(chosen + 1));
  document.addEventListener("keydown", (event) => {
    if (event.target === byId("slider")) return;
    if (event.key === "ArrowLeft") choose(chosen - 1);
    if (event.key === "ArrowRight") choose(chosen + 1);
  });
}

showFigures();
showAnswer();
showColumns();
showTimes();
showDepths();
showControls();
// The pass that shows most: the one with the most accepted guesses.
const best = data.passes.reduce((best, pass, index) => (numAccepted(pass) > numAccepted(data.passes[best]) ? index : best), 0);
choose(best);
