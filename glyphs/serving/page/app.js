// The page: what is on the paper goes to the service, whose answer is shown.  One request at a time: while a stroke is
// being drawn the next one waits for the answer, at its end it takes the other's place.

import { Paper } from "./paper.js";

const WHILE_DRAWING = 150; // milliseconds between two requests while a stroke is being drawn
const RETRY = 2000; // milliseconds until a service that did not answer is asked again
const WORDS = {
  ok: (row) => `${percent(row.confidence)} sure`,
  uncertain: (row) => `Not sure: ${percent(row.confidence)} is too little.`,
  no_glyph: () => "Nothing to be seen: it is blank, too faint, or a pattern.",
  joined_script: () => "Joined letters are not read: write them apart.",
  failed: (row) => `This cannot be read: ${row.error}`,
};

const $ = (id) => document.getElementById(id);
const isCharacter = (name) => /^.\p{M}*$/su.test(name);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

// The token comes once, behind the address's #, which browsers send to nobody.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token && { authorization: `Bearer ${token}` }) };
  return fetch(path, { ...options, headers });
}

const reason = async (answer) => {
  try { return (await answer.json()).error; } catch { return `status ${answer.status}`; }
};

let request = null; // the AbortController of the one under way
let again = false; // the paper changed meanwhile
let last = 0; // when the last request went off
let timer = 0; // of the next one

const paper = new Paper($("paper"), (settled) => {
  $("kept").textContent = "";
  $("undo").disabled = $("clear").disabled = paper.empty;
  clearTimeout(timer);
  if (settled) read();
  else timer = setTimeout(read, Math.max(0, last + WHILE_DRAWING - performance.now()), false);
});

async function read(settled = true) {
  if (request && !settled) { again = true; return; }
  request?.abort();
  request = null;
  clearTimeout(timer);
  again = false;
  if (paper.empty) return show(null, "Nothing drawn yet.");
  const own = request = new AbortController();
  last = performance.now();
  try {
    const body = paper.blob();
    let answer = await predict(body, facts?.text, own.signal);
    let [row] = await rows(answer);
    if (row?.status === "several_glyphs") {
      answer = await predict(body, true, own.signal);
      [row] = await rows(answer);
    }
    const words = row ? WORDS[row.status](row) : `The service refused: ${await reason(answer)}`;
    if (request !== own) return;
    show(row, words);
    if (!row && answer.status === 503) timer = setTimeout(read, RETRY);
  } catch {
    if (request !== own) return;
    show(null, "The service does not answer. It will be asked again.");
    timer = setTimeout(read, RETRY);
  }
  request = null;
  if (again) read();
}

function predict(body, text, signal) {
  const query = new URLSearchParams({ top_k: "5", text: Boolean(text), saw: !text });
  if ($("alphabet").value) query.set("alphabet", $("alphabet").value);
  if ($("model").value) query.set("model", $("model").value);
  return ask(`predict?${query}`, {
    method: "POST", body, signal, headers: { "content-type": body.type || "application/octet-stream" },
  });
}

// No rows where the service refused.
const rows = async (answer) => (answer.ok || answer.status === 422 ? answer.json() : []);

function show(row, words) {
  if ($("words").textContent !== words) $("words").textContent = words;
  const letter = row?.prediction ?? row?.text ?? "";
  $("letter").classList.toggle("text", !isCharacter(letter));
  if ($("letter").textContent !== letter) $("letter").textContent = letter;
  $("bars").replaceChildren(...(row?.top_k ?? []).map(({ label, probability }) => {
    const item = document.createElement("li");
    const [name, bar, figure] = ["b", "div", "span"].map((tag) => document.createElement(tag));
    name.textContent = label;
    const fill = document.createElement("i");
    fill.style.width = `${100 * probability}%`;
    bar.append(fill);
    figure.textContent = percent(probability);
    item.append(name, bar, figure);
    return item;
  }));
  $("saw-figure").hidden = !row?.saw;
  if (row?.saw) $("saw").src = `data:image/png;base64,${row.saw}`;
  $("correct").hidden = !facts?.collect || !row?.top_k;
  if (row?.top_k?.length) $("label").value = row.top_k[0].label;
}

let facts = null; // of the model that is chosen

async function describe() {
  try {
    const answer = await ask(`model?${new URLSearchParams($("model").value && { model: $("model").value })}`);
    if (!answer.ok) {
      show(null, `The service refused: ${await reason(answer)}`);
      return;
    }
    facts = await answer.json();
    $("model").replaceChildren(...facts.models.map((name) => new Option(name, name, false, name === facts.model)));
    const characters = facts.alphabet.every(isCharacter);
    $("title").textContent = characters ? "Draw a character, a number or a word" : "Draw a picture";
    $("hint").hidden = !characters;
    $("kind").textContent = characters ? "characters" : "classes, with spaces between them";
    $("alphabet").placeholder = `all: ${facts.alphabet.join(characters ? "" : " ")}`;
    $("description").textContent = `${facts.model}: ${facts.description}`;
    $("card").textContent = facts.card ?? "";
    $("label").replaceChildren(...facts.alphabet.map((name) => new Option(name, name)));
    if (!paper.empty) read();
  } catch {
    setTimeout(describe, RETRY);
  }
}

$("model").addEventListener("change", describe);
$("undo").addEventListener("click", () => paper.undo());
$("clear").addEventListener("click", () => paper.clear());
$("width").addEventListener("input", () => { paper.width = Number($("width").value); });
$("alphabet").addEventListener("input", () => read());
for (const id of ["file", "camera"]) {
  $(id).addEventListener("change", () => {
    if ($(id).files.length) paper.show($(id).files[0]);
    $(id).value = ""; // the same picture may be chosen again
  });
}
$("correct").addEventListener("submit", async (event) => {
  event.preventDefault();
  const label = $("label").value;
  const body = paper.blob();
  try {
    const answer = await ask(`collect?${new URLSearchParams({ label, model: $("model").value })}`, {
      method: "POST", body, headers: { "content-type": body.type || "application/octet-stream" },
    });
    $("kept").textContent = answer.ok ? `Kept as ${label}.` : `Not kept: ${await reason(answer)}`;
  } catch {
    $("kept").textContent = "Not kept: the service does not answer.";
  }
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && event.target.id !== "alphabet") {
    event.preventDefault();
    paper.undo();
  }
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) paper.show(file);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("paper").classList.add("over");
});
document.addEventListener("dragleave", () => $("paper").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("paper").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) paper.show(file);
});

$("undo").disabled = $("clear").disabled = true;
describe();
