// What the page does in the browser alone: the choice of colours, the buttons that have something to do, and toasts.
(() => {
  "use strict";
  const KEY = "llava-appearance";
  let running = 0, stopping = false, answered = false;

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

  const tools = () => {
    stopping = stopping && running > 0;
    const update = (interactive) => ({ __type__: "update", interactive });
    const asked = update(answered && running === 0);
    return [update(running > 0 && !stopping), asked, asked, { __type__: "update", active: stopping }];
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
    switchAppearance() {
      const dark = !document.body.classList.contains("dark");
      try { localStorage.setItem(KEY, dark ? "dark" : "light"); } catch { /* private window: for this visit only */ }
      setDark(dark);
    },
    // For the buttons Stop, Regenerate and Undo, and the timer that stops again.
    begin(compares) {
      running += 1;
      stopping = false;
      comparing = Boolean(compares);
      if (comparing) showComparison(); else scrollTo("#chat", "center");
      return tools();
    },
    end() { running = Math.max(0, running - 1); return tools(); },
    stop() { stopping = true; return tools(); },
    show(chat) { answered = (chat?.length ?? 0) > 0; return tools(); },
  };

  // Escape stops, as the button does, where it does nothing else.
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.defaultPrevented) document.querySelector("#stop:enabled")?.click();
  });

  // The chatbot's copy buttons copy the escaped message; this unescapes it.
  const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
  const shown = (html) => new DOMParser().parseFromString("<pre>" + html, "text/html").body.textContent;
  if (write) navigator.clipboard.writeText = (text) => write(shown(text));

  const start = () => {
    const look = () => { hideRepeatedToasts(); nameExamples(); showComparison(); };
    follow();
    measure();
    nameExamples();
    new MutationObserver(follow).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true });
    new ResizeObserver(measure).observe(document.body);
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start); // else added by Gradio later
  else start();
})();
