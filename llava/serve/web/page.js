// What the page does in the browser alone: the choice of colours, the buttons that have something to do, and toasts.
(() => {
  "use strict";
  const KEY = "llava-appearance";
  let running = 0, ended = 0, stopping = false, answered = false;

  // Colours: the visitor's choice, kept for the next visit; without one the system's, also when that changes.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const setDark = (dark) => {
    if (document.body.classList.contains("dark") !== dark) document.body.classList.toggle("dark", dark);
  };
  const follow = () => { const choice = stored(); if (choice) setDark(choice === "dark"); };
  system.addEventListener("change", () => { if (!stored()) setDark(system.matches); });

  // Toasts: of the same message several times only the last is shown. Gradio lists all of one kind in one body.
  const hideRepeatedToasts = () => {
    for (const body of document.querySelectorAll('[data-testid="toast-body"]')) {
      const texts = new Set();
      for (const item of [...body.querySelectorAll(".toast-message-item")].reverse()) {
        const text = item.textContent.trim(), line = item.nextElementSibling;
        const display = texts.has(text) ? "none" : "";
        for (const part of line?.matches(".toast-separator") ? [item, line] : [item]) part.style.display = display;
        texts.add(text);
      }
    }
  };

  // Example pictures: Gradio gives their buttons no names.
  const nameExamples = () => {
    document.querySelectorAll("#examples .gallery-item:not([aria-label])").forEach((button, index) => {
      button.setAttribute("aria-label", `Example picture ${index + 1}`);
      button.querySelector("img")?.setAttribute("alt", "");
    });
  };

  // Suggested questions: Gradio makes them a list without items.
  const fixLists = () => {
    document.querySelectorAll('#chat .examples[role="list"]').forEach((list) => list.removeAttribute("role"));
  };

  // Gradio's status for screen readers: the key of a text that it has not translated is none.
  const fixStatus = () => {
    document.querySelectorAll('[role="status"]').forEach(({ firstChild }) => {
      if (firstChild?.data?.startsWith("common.")) firstChild.data = "";
    });
  };

  // Sliders' number fields: Gradio sends whatever is typed, and corrects it later without telling anyone.
  const range = (field) => field.closest(".block")?.querySelector("input[type=range]");
  const isWrong = ({ value, step, validity }) => {
    const { badInput, rangeUnderflow, rangeOverflow, stepMismatch } = validity;
    return value === "" || badInput || rangeUnderflow || rangeOverflow || (step === "1" && stepMismatch);
  };
  const nearest = (value, { min, max, step, dataset }, slider) => {
    if (value === "" || Number.isNaN(Number(value))) return dataset.last ?? slider.value;
    const allowed = Math.min(Math.max(Number(value), Number(min)), Number(max));
    return String(step === "1" ? Math.round(allowed) : allowed);
  };
  const isNumber = (field) => field.matches?.('.card input[type="number"]') && range(field);
  addEventListener("input", (event) => {
    const { target } = event;
    if (target.type === "range") delete target.closest(".block")?.querySelector("input[type=number]")?.dataset.last;
    if (!isNumber(target)) return;
    delete target.dataset.wrong;
    if (!isWrong(target)) { target.dataset.last = target.value; return; }
    event.stopImmediatePropagation();
    target.dataset.wrong = target.value; // Gradio may write the last allowed number over it at any time
  }, true);
  addEventListener("blur", ({ target }) => {
    const wrong = target.dataset?.wrong;
    if (!isNumber(target) || (wrong === undefined && !isWrong(target))) return;
    target.value = nearest(wrong ?? target.value, target, range(target));
    target.dispatchEvent(new Event("input", { bubbles: true }));
  }, true);

  // The chat follows a growing answer as long as its end is in view; Gradio would follow also a reader who scrolls up.
  let follows = true, lastTop = 0;
  const scroller = () => document.querySelector("#chat .bubble-wrap");
  addEventListener("scroll", ({ target }) => {
    if (target !== scroller()) return;
    const { scrollTop, scrollHeight, clientHeight } = target;
    if (scrollHeight - scrollTop - clientHeight < 2) follows = true;
    else if (scrollTop < lastTop) follows = false;
    lastTop = scrollTop;
  }, true);
  addEventListener("wheel", ({ target, deltaY }) => { // before the next piece of the answer could scroll back
    if (deltaY < 0 && scroller()?.contains(target)) follows = false;
  }, { capture: true, passive: true });
  let isDrawn = true; // a layout for each change of the page would keep a browser busy with nothing else
  const followAnswer = () => {
    if (!isDrawn) return;
    isDrawn = false;
    requestAnimationFrame(() => {
      isDrawn = true;
      const chat = scroller();
      if (!follows || !chat) return;
      chat.scrollTop = chat.scrollHeight;
      lastTop = chat.scrollTop; // its own scroll event comes later, maybe together with the reader's
    });
  };

  // Sliders: Gradio gives all their reset buttons one name.
  const nameResets = () => {
    for (const button of document.querySelectorAll(".reset-button:not([data-named])")) {
      const slider = button.closest(".block")?.querySelector("input[type=range]")?.getAttribute("aria-label");
      if (!slider) continue;
      button.setAttribute("aria-label", `Reset ${slider.replace(/^range slider for /, "")} to its default`);
      button.dataset.named = "";
    }
  };

  // What the buttons Stop, Regenerate and Undo are enabled for: answers, and uploads. While another picture is opened,
  // the conversation is about to end.
  const tools = () => {
    stopping = stopping && running > 0;
    const update = (interactive) => ({ __type__: "update", interactive });
    const asked = update(answered && running === 0 && !window.llavaPage.isOpening());
    return [update((running > 0 && !stopping) || window.llavaPage.isUploading()), asked, asked];
  };
  const noteOpening = () => {
    window.llavaPage.showAwaited();
    document.querySelector("#update-tools")?.click(); // Gradio takes the buttons' state from an event alone
  };

  // Presses are numbered, since the server may start their events in any order; see `Runs`. Those that edit the
  // conversation, as Clear does, come first: what is pressed after one of them is sent once the page shows its result.
  // Clear and Undo stop what runs, and are sent once the page has shown the last of it, which else could replace theirs.
  const STARTS = ["ask", "suggest", "regenerate", "compare"], EDITS = ["clear", "undo", "open", "add", "remove"];
  const STOPS = ["clear", "undo"], DISABLED = ["stop", "regenerate", "undo"];
  const DRAWS = ["look", "view"];
  const PATIENCE = 30_000, PATIENCE_FOR_RUNS = 10_000; // milliseconds
  const unsent = new Map(); // by name, the numbers of presses whose events are still to be sent
  const removed = []; // pictures whose removal is still to be sent
  let presses = 0, edits = [];
  const count = (name) => {
    const number = presses += 1;
    if (EDITS.includes(name)) {
      const edit = { name, number, runs: STOPS.includes(name) ? ended + running : 0 };
      edit.done = new Promise((resolve) => { edit.end = resolve; });
      edits.push(edit);
      if (name === "open") noteOpening();
    }
    return number;
  };
  const keep = (name, number) => unsent.set(name, [...(unsent.get(name) ?? []), number]);
  const endEdits = (ended) => {
    edits = edits.filter((each) => !ended.includes(each));
    for (const edit of ended) edit.end();
    if (ended.length > 0) noteOpening();
  };
  const takeNumber = (name) => unsent.get(name)?.shift() ?? count(name);
  const atMost = (promise, most) => Promise.race([promise, new Promise((resolve) => setTimeout(resolve, most))]);
  // Gives whether one of them was an upload that the visitor has stopped.
  const waitForEdits = async (number) => {
    const before = edits.filter((edit) => edit.number < number);
    if (before.length === 0) return false;
    await Promise.all(before.map((edit) => edit.uploaded)); // however long: an upload ends, fails, or is stopped
    await atMost(Promise.all(before.map((edit) => edit.done)), PATIENCE);
    endEdits(edits.filter((edit) => before.includes(edit)));
    return before.some((edit) => edit.isStopped);
  };
  let runsAwaited = []; // the numbers of ended runs that are waited for
  const waitForRuns = async (number) => {
    const runs = edits.find((edit) => edit.number === number)?.runs ?? 0;
    if (ended >= runs) return;
    await atMost(new Promise((resolve) => runsAwaited.push({ runs, resolve })), PATIENCE_FOR_RUNS);
  };

  // A button that a key has pressed loses the focus when it is disabled; the question box takes it instead.
  const keepFocus = (name) => {
    if (DISABLED.includes(name) && document.activeElement?.matches("button:focus-visible")) {
      document.querySelector("#question textarea")?.focus();
    }
  };

  // On a phone what is answered scrolls into view; on larger windows it is there already.
  let comparing = false;
  const scrollTo = (selector, block) => {
    const part = document.querySelector(selector);
    if (!part?.checkVisibility()) return false;
    if (innerWidth <= 760) part.scrollIntoView({ block });
    return true;
  };
  const showComparison = () => { if (comparing && scrollTo("#compare-card", "start")) comparing = false; };

  // The conversation's column fills the window below the header.
  const measure = () => {
    const stage = document.querySelector("#stage");
    if (stage) stage.style.setProperty("--above", `${Math.round(stage.getBoundingClientRect().top + scrollY) + 16}px`);
  };

  window.llavaPage = {
    // Scripts run at once where Gradio adds them later, and else before there is a body.
    whenReady(start) {
      if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
      else start();
    },
    switchAppearance() {
      const dark = !document.body.classList.contains("dark");
      try { localStorage.setItem(KEY, dark ? "dark" : "light"); } catch { /* private window: for this visit only */ }
      setDark(dark);
    },
    press(name) {
      keepFocus(name);
      keep(name, count(name));
      if (STARTS.includes(name)) {
        running += 1;
        stopping = false;
        follows = true;
        comparing = name === "compare";
        if (comparing) showComparison(); else scrollTo("#chat", "center");
        window.llavaPage.beginWait(name);
      } else {
        stopping = true;
        window.llavaPage.endWait();
        if (name === "stop") window.llavaPage.stopUploads();
        else window.llavaPage.forgetReplaced();
      }
      return tools();
    },
    tools,
    // The inputs of an event once it may be sent; of one that starts or ends answers the second input is its number.
    async wait(name, inputs) {
      if (DRAWS.includes(name)) window.llavaPage.beginDrawing(name);
      await waitForEdits(takeNumber(name));
      return inputs;
    },
    async send(name, inputs) {
      const number = takeNumber(name), isStopped = await waitForEdits(number);
      if (isStopped && STARTS.includes(name)) {
        if (name === "ask") window.llavaPage.putBackUnsent(inputs[2]);
        throw new Error("the upload that this event waited for was stopped"); // Gradio takes it for a failed event
      }
      await waitForRuns(number);
      if (name === "ask") window.llavaPage.noteSent(inputs[2]);
      return [inputs[0], number, ...inputs.slice(2)];
    },
    // Begins the opening of a picture that is here already; its event follows.
    beginOpen() { keep("open", count("open")); },
    // The event that opens a picture takes the numbers of these openings: several, if Gradio sends only the last.
    async sendOpen(inputs) {
      window.llavaPage.beginDrawing("open");
      const numbers = unsent.get("open") ?? [count("open")];
      unsent.delete("open");
      await waitForEdits(numbers[0]);
      for (const edit of edits) edit.isSent ||= numbers.includes(edit.number);
      window.llavaPage.noteReplaced();
      return [inputs[0], numbers.at(-1), ...inputs.slice(2)];
    },
    // Begins an edit with its upload; gives what ends the upload, which counts once.
    beginUpload(name) {
      const number = count(name), edit = edits.at(-1);
      let resolve;
      edit.uploaded = new Promise((done) => { resolve = done; });
      noteOpening();
      return ({ isDone = false, isStopped = false }) => {
        if (edit.isUploaded) return;
        Object.assign(edit, { isUploaded: true, isStopped });
        if (isDone) keep(name, number); else endEdits([edit]);
        resolve();
        noteOpening();
      };
    },
    isUploading() { return edits.some(({ uploaded, isUploaded }) => uploaded && !isUploaded); },
    isOpening() { return this.isUploading() || edits.some(({ name }) => name === "open"); },
    // The button's number and that of all pictures, as the second input.
    async remove(inputs) {
      const [picture] = removed.splice(0, 1);
      await waitForEdits(takeNumber("remove"));
      return [inputs[0], picture, ...inputs.slice(2)];
    },
    // The number of a press that stops what runs; that of an edit is still to be sent with its own event.
    numberStop(name) { return name === "stop" ? takeNumber(name) : unsent.get(name)?.at(-1); },
    fail(chat) { window.llavaPage.putBack(chat); return this.end(); },
    end() {
      running = Math.max(0, running - 1);
      if (running === 0) { window.llavaPage.endWait(); window.llavaPage.forgetSent(); }
      ended += 1;
      for (const waiting of runsAwaited) if (waiting.runs <= ended) waiting.resolve();
      runsAwaited = runsAwaited.filter((waiting) => waiting.runs > ended);
      return tools();
    },
    endEdit(name) {
      const fitting = edits.filter((each) => each.name === name);
      endEdits(name === "open" ? fitting.filter((each) => each.isSent) : fitting.slice(0, 1));
      window.llavaPage.endDrawing(name);
      if (name === "remove") focusStrip();
      if (name === "add") scrollTo("#strip", "center");
    },
    show(chat) {
      answered = (chat?.length ?? 0) > 0;
      window.llavaPage.noteChat(chat);
      return tools();
    },
  };

  // Added pictures: a press on a thumbnail's button removes it, and the focus goes to the next one.
  addEventListener("click", (event) => {
    const button = event.target.closest?.("#strip button[data-picture]");
    if (!button) return;
    removed.push([Number(button.dataset.picture), Number(button.dataset.pictures)]);
    document.querySelector("#remove-picture")?.click();
  });
  const focusStrip = () => {
    if (document.activeElement && document.activeElement !== document.body) return; // the visitor is elsewhere
    const buttons = document.querySelectorAll("#strip button[data-picture]");
    (buttons[buttons.length - 1] ?? document.querySelector("#add-picture"))?.focus();
  };

  // Escape stops, as the button does, where it does nothing else.
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.defaultPrevented) document.querySelector("#stop:enabled")?.click();
  });

  // The chatbot's copy buttons copy a message's HTML; this takes the text that was written. Without https Gradio copies
  // from a field that it adds for that moment.
  const written = (html) => {
    const { body } = new DOMParser().parseFromString("<pre>" + html, "text/html");
    for (const mark of body.querySelectorAll(".mark")) mark.remove();
    return body.querySelector(".answer")?.dataset.text ?? body.textContent;
  };
  const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
  if (write) navigator.clipboard.writeText = (text) => write(written(text));
  addEventListener("copy", (event) => {
    const field = document.activeElement;
    if ("clipboard" in navigator || field?.tagName !== "TEXTAREA" || field.parentElement !== document.body) return;
    event.clipboardData.setData("text/plain", written(field.value));
    event.preventDefault();
  });

  const start = () => {
    const look = () => {
      hideRepeatedToasts(); nameExamples(); nameResets(); fixLists(); fixStatus(); showComparison(); followAnswer();
    };
    follow();
    measure();
    nameExamples();
    nameResets();
    fixLists();
    new MutationObserver(follow).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    new MutationObserver(look).observe(document.body, { childList: true, characterData: true, subtree: true });
    new ResizeObserver(measure).observe(document.body);
  };
  window.llavaPage.whenReady(start);
})();
