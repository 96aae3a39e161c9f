"use strict";
// Whatever people or models say is put in by textContent: it is text, and never becomes HTML.

const at = (id) => document.getElementById(id);
const tabs = new BroadcastChannel("chat"); // the other tabs of this browser
let session = ""; // the conversation that is shown
let oldest = 0; // positions of its first and last message that is shown
let newest = 0;
let speaking = null; // what stops the answer that is on its way
let stopped = null; // the turn whose answer was stopped last: at its very end it was stored already
let listed = null; // where the next page of the list begins
const unborn = new Set(); // conversations that begin with the first turn of theirs

// Requests ---------------------------------------------------------------------------------------

async function ask(path, options) {
  const response = await fetch(`/api/${path}`, options);
  if (response.ok) return response;
  const { detail } = await response.json().catch(() => ({ detail: response.statusText }));
  throw Object.assign(new Error(detail), { status: response.status });
}
const read = async (path) => (await ask(path)).json();
const conversation = (name) => `conversations/${encodeURIComponent(name)}`;

async function* events(response) {
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const whole = (rest + part.value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      const [, name, data] = event.match(/^event: (\w+)\ndata: (.*)$/);
      yield [name, JSON.parse(data)];
    }
  }
}

function key() { // not randomUUID: browsers give that to secure pages only
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function born() {
  const name = key();
  unborn.add(name);
  return name;
}

// A conversation ---------------------------------------------------------------------------------

function bubble({ role, content, position }) {
  const item = document.createElement("li");
  item.className = role;
  if (position) item.dataset.position = position;
  const who = document.createElement("span");
  who.className = "who";
  who.textContent = `${role === "user" ? "You" : role}: `;
  const words = document.createElement("span");
  words.textContent = content;
  item.append(who, words);
  return item;
}

function toTheEnd() {
  at("log").scrollTop = at("log").scrollHeight;
}

function blank() {
  oldest = newest = 0;
  at("messages").replaceChildren();
  at("title").textContent = "New conversation";
  at("delete").hidden = at("earlier").hidden = true;
  accepting(true);
}

function accepting(messages) {
  at("text").disabled = at("send").disabled = !messages;
  at("text").placeholder = messages ? "Say something" : "This conversation is closed";
}

async function open() {
  const [name, position] = location.hash.slice(1).split("/");
  document.body.classList.toggle("listing", !name);
  const shown = session = decodeURIComponent(name) || born();
  blank();
  markCurrent();
  if (!pending()) say("");
  await readOn();
  while (position && shown === session && oldest > Number(position)) await readBack();
  const sought = position && at("messages").querySelector(`[data-position="${Number(position)}"]`);
  if (sought) {
    sought.classList.add("sought");
    sought.scrollIntoView({ block: "center" });
  }
}

async function readOn() { // messages that are new since the last one that is shown
  const [shown, last] = [session, newest];
  if (unborn.has(shown)) return;
  const answer = await read(`${conversation(shown)}?after=${last}`).catch((error) => {
    if (error.status === 404 && newest && shown === session) blank(); // it was deleted meanwhile
    else if (error.status !== 404 && !pending()) say(error.message);
    return null;
  });
  if (!answer || shown !== session) return;
  at("title").textContent = answer.title;
  at("delete").hidden = false;
  accepting(answer.open);
  const messages = answer.messages.filter((message) => message.position > newest);
  if (!messages.length) return;
  at("messages").append(...messages.map(bubble));
  if (!oldest) oldest = messages[0].position;
  newest = messages.at(-1).position;
  at("earlier").hidden = oldest === 1;
  toTheEnd();
  if (last) await readOn(); // there may be more than a page
}

async function readBack() { // messages before the first one that is shown
  const [shown, first] = [session, oldest];
  const { messages } = await read(`${conversation(shown)}?before=${first}`);
  if (shown !== session || first !== oldest) return;
  const height = at("log").scrollHeight;
  at("messages").prepend(...messages.map(bubble));
  oldest = messages[0].position;
  at("earlier").hidden = oldest === 1;
  at("log").scrollTop += at("log").scrollHeight - height;
}

// A turn: kept in this tab until it is answered, so that a reload sends it again, and with the same
// request_id it is stored once ---------------------------------------------------------------------

function pending() { // not what another said, who was asking in this tab before
  const turn = JSON.parse(sessionStorage.getItem("pending"));
  return turn?.user === whoIsAsking() ? turn : null;
}

async function send(turn) {
  sessionStorage.setItem("pending", JSON.stringify(turn));
  unborn.delete(turn.session);
  const question = bubble({ role: "user", content: turn.text });
  const answer = bubble({ role: "assistant", content: "" });
  answer.classList.add("coming");
  at("messages").append(question, answer);
  toTheEnd();
  say("");
  busy(new AbortController());
  try {
    const response = await ask(conversation(turn.session), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text: turn.text, request_id: turn.request_id }),
      signal: speaking.signal,
    });
    let ended = false;
    for await (const [name, data] of events(response)) {
      if (name === "bit") answer.lastChild.textContent += data;
      if (name === "error") throw Object.assign(new Error(data.detail), data);
      ended = name === "stored";
      if (turn.session === session) toTheEnd();
    }
    if (!ended) throw new Error("the answer broke off");
    sessionStorage.removeItem("pending");
    if (turn.session === session) await readOn();
    tabs.postMessage(turn.session);
  } catch (error) {
    const mayBeStored = !speaking.signal.aborted && (!error.status || error.status === 503);
    if (speaking.signal.aborted) stopped = turn;
    if (!mayBeStored) { // it was refused, or stopped
      sessionStorage.removeItem("pending");
      at("text").value ||= turn.text;
    }
    const reason = error.status ? error.message : "there was no answer";
    if (!speaking.signal.aborted) say(`“${turn.text.slice(0, 40)}”: ${reason}`, mayBeStored);
  }
  question.remove();
  answer.remove();
  busy(null);
  await Promise.all([list(), account()]);
}

function busy(controller) {
  speaking = controller;
  at("log").ariaBusy = Boolean(controller); // readers read the answer when it is whole
  at("send").hidden = Boolean(controller);
  at("stop").hidden = !controller;
}

function say(text, again = false) {
  at("notice").firstChild.textContent = text;
  at("again").hidden = !again;
}

// The list ---------------------------------------------------------------------------------------

function entry(name, position, ...content) {
  const link = document.createElement("a");
  link.href = `#${encodeURIComponent(name)}${position ? `/${position}` : ""}`;
  link.append(...content);
  const item = document.createElement("li");
  item.append(link);
  return item;
}

function markCurrent() {
  for (const link of at("list").querySelectorAll("a")) {
    link.ariaCurrent = link.hash === `#${encodeURIComponent(session)}` ? "page" : null;
  }
}

async function list(more = false) {
  if (at("query").value.trim()) return;
  const page = await read(`conversations${more ? `?after=${encodeURIComponent(listed)}` : ""}`);
  if (at("query").value.trim()) return;
  const entries = page.conversations.map(({ session_id, title, last_activity }) => {
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = title;
    const time = document.createElement("time");
    time.dateTime = last_activity;
    time.textContent = new Date(last_activity).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    return entry(session_id, 0, name, time);
  });
  if (more) at("list").append(...entries);
  else at("list").replaceChildren(...entries);
  listed = page.next;
  at("more").hidden = !listed;
  at("found").textContent = "";
  markCurrent();
}

async function search() {
  const query = at("query").value.trim();
  if (!query) return list();
  const hits = await read(`search?q=${encodeURIComponent(query)}`);
  if (query !== at("query").value.trim()) return; // another one was asked for meanwhile
  at("found").textContent = hits.length === 1 ? "1 message" : `${hits.length} messages`;
  at("list").replaceChildren(
    ...hits.map((hit) => entry(hit.session_id, hit.position, ...marked(hit.excerpt, query))),
  );
  at("more").hidden = true;
  markCurrent();
}

function marked(text, query) {
  const words = query.match(/[\p{L}\p{N}]+/gu) ?? [];
  if (!words.length) return [text];
  return text.split(new RegExp(`(${words.join("|")})`, "giu")).map((part, index) => {
    if (index % 2 === 0) return part;
    const mark = document.createElement("mark");
    mark.textContent = part;
    return mark;
  });
}

async function account() {
  const { spent, most } = await read("allowance");
  Object.assign(at("spent"), { max: most, value: spent });
  at("tokens").textContent = `${spent.toLocaleString()} of ${most.toLocaleString()}`;
}

// What happens -----------------------------------------------------------------------------------

const whoIsAsking = () => document.cookie.match(/(?:^|; )user=([^;]*)/)?.[1];
const become = (name) => {
  document.cookie = `user=${encodeURIComponent(name)}; SameSite=Strict; Path=/`;
};

at("compose").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text || speaking) return;
  if (pending()) await send(pending()); // what was said before comes first
  if (pending()) return;
  at("text").value = "";
  if (!location.hash.slice(1)) history.replaceState(null, "", `#${session}`);
  document.body.classList.remove("listing");
  const again = stopped?.session === session && stopped.text === text;
  send(again ? stopped : { user: whoIsAsking(), session, text, request_id: key() });
  stopped = null;
});
at("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("compose").requestSubmit();
});
at("stop").addEventListener("click", () => speaking?.abort());
at("again").addEventListener("click", () => !speaking && pending() && send(pending()));
at("new").addEventListener("click", () => {
  location.hash = born();
  at("text").focus();
});
at("delete").addEventListener("click", async () => {
  if (!confirm("Delete this conversation for good?")) return;
  await ask(conversation(session), { method: "DELETE" });
  tabs.postMessage(session);
  location.hash = "";
  await list();
});
at("earlier").addEventListener("click", readBack);
at("more").addEventListener("click", () => list(true));
at("query").addEventListener("input", search);
at("query").form.addEventListener("submit", (event) => event.preventDefault());
at("user").addEventListener("change", () => {
  become(at("user").value.trim() || "guest");
  sessionStorage.clear();
  location.assign("/");
});
addEventListener("hashchange", open);
tabs.addEventListener("message", ({ data }) => {
  list();
  if (data === session && !speaking) readOn();
});
addEventListener("focus", () => {
  list();
  if (!speaking) readOn();
});

async function begin() {
  if (!whoIsAsking()) become("renée-lefèvre"); // of the dialogues that are imported
  at("user").value = decodeURIComponent(whoIsAsking());
  const turn = pending();
  if (turn) history.replaceState(null, "", `#${turn.session}`);
  await Promise.all([open(), list(), account()]);
  if (turn) await send(turn);
}
begin();
