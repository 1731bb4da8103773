// The question box, which nothing but the visitor's own question empties or fills, and the line that says that an answer
// is awaited. Loaded after `page.js`.
(() => {
  "use strict";
  const page = window.llavaPage;
  const box = () => document.querySelector("#question textarea");
  // Questions are compared without regard to the kind of their white space, which the conversation's HTML may change.
  const plain = (text) => String(text ?? "").replace(/[\s\u0085]+/g, " ").trim();
  const fill = (text) => {
    box().value = text;
    box().dispatchEvent(new Event("input", { bubbles: true }));
  };

  // What is typed outlives a reload: Gradio reloads the page by itself when a lost connection is back.
  const DRAFT = "llava-draft";
  const keepDraft = (text) => {
    try { if (text) sessionStorage.setItem(DRAFT, text); else sessionStorage.removeItem(DRAFT); } catch { /* private window */ }
  };
  addEventListener("input", ({ target }) => { if (target === box()) keepDraft(target.value); }, true);
  let restored = false;
  const restoreDraft = () => {
    if (restored || !box()) return;
    restored = true;
    let draft = "";
    try { draft = sessionStorage.getItem(DRAFT) ?? ""; } catch { /* private window */ }
    if (draft && !box().value) fill(draft);
  };

  // A question stays in the box until the conversation shows it, and returns if that takes it back, unless the visitor
  // types another one meanwhile.
  let sent = [], taken = ""; // questions that are still to be shown, and the one that has left the box
  let isUnanswered = false, isReplaced = false; // whether that one has no answer yet, and another picture is opened
  const htmlOf = ({ content = "" } = {}) =>
    typeof content === "string" ? content : content.map(({ text }) => text ?? "").join("");
  const lastQuestion = (chat) => {
    const html = htmlOf(chat?.findLast(({ role }) => role === "user"));
    return plain(new DOMParser().parseFromString("<pre>\n" + html, "text/html").body.textContent);
  };

  // The press whose first output is awaited, and its question where that is known.
  let awaited = null;
  const showAwaited = () => {
    const what = page.isOpening() ? "picture" : "model", text = awaited ? `Waiting for the ${what}…` : "";
    const line = document.querySelector("#waiting p");
    if (line && line.textContent !== text) line.textContent = text;
  };
  const endWait = () => { awaited = null; showAwaited(); };
  const isInComparison = (node) => (node.closest ? node : node.parentElement)?.closest("#compare-card");
  const look = (records) => {
    restoreDraft();
    if (awaited?.name !== "compare") return;
    const nodes = records.flatMap(({ target, addedNodes }) => [target, ...addedNodes]);
    if (nodes.some((node) => isInComparison(node) || node.querySelector?.("#compare-card"))) endWait();
  };

  Object.assign(page, {
    showAwaited,
    beginWait(name) {
      taken = "";
      awaited = { name, question: name === "ask" ? plain(box()?.value) : "" };
      showAwaited();
    },
    endWait,
    noteSent(question) { sent.push(plain(question)); },
    // The inputs of an event that asks a suggested question, which leaves the box alone.
    suggest(inputs, question) {
      if (awaited?.name === "suggest") awaited.question = plain(question);
      return page.send("suggest", [inputs[0], inputs[1], question, ...inputs.slice(3)]);
    },
    noteChat(chat) {
      const question = lastQuestion(chat);
      if (awaited && awaited.name !== "compare" && (!awaited.question || awaited.question === question)) endWait();
      if (question && sent.includes(question)) {
        sent = sent.filter((each) => each !== question);
        const typed = box()?.value ?? "";
        taken = plain(typed) === question ? typed.trim() : question;
        if (plain(typed) === question) fill("");
      }
      if (!chat?.length && isUnanswered && isReplaced) page.putBack(chat);
      if (!chat?.length) isReplaced = false;
      isUnanswered = question !== "" && (chat.at(-1).role === "user" || htmlOf(chat.at(-1)).includes('class="mark alone"'));
      setTimeout(() => keepDraft(box()?.value), 500); // after an undone question has returned, which Gradio does silently
    },
    // After an answer has failed: its question returns to an empty box, if the conversation has lost it.
    putBack(chat) {
      if (taken && lastQuestion(chat) !== plain(taken) && !box()?.value.trim()) fill(taken);
      taken = "";
    },
    // Of an event that waited for an upload that was stopped.
    putBackUnsent(question) { if (!box()?.value.trim()) fill(question); },
    forgetSent() { sent = []; },
    noteReplaced() { isReplaced = true; },
    forgetReplaced() { isReplaced = false; },
  });

  const changes = { childList: true, characterData: true, subtree: true };
  page.whenReady(() => new MutationObserver(look).observe(document.body, changes));
})();
