// Names for screen readers, and one tab stop each, for controls and groups that Gradio leaves without.
(() => {
  "use strict";
  const set = (part, name, value) => { if (part && part.getAttribute(name) !== value) part.setAttribute(name, value); };

  const nameControls = () => {
    // Radio groups: their hidden label is no legend.
    set(document.querySelector("#view"), "aria-label", "View");
    set(document.querySelector("#way"), "aria-label", "Way of seeing");
    // Gradio names each radio of a group otherwise: the browser's arrow keys and Tab go by the name.
    for (const radio of document.querySelectorAll("fieldset[id] input[type=radio]")) set(radio, "name", radio.closest("fieldset").id);
    // The download is a button inside a link: the link is what works without a mouse.
    for (const link of document.querySelectorAll("a.download-link")) {
      set(link, "aria-label", "Download");
      set(link.querySelector("button"), "tabindex", "-1");
      set(link.querySelector("button"), "aria-hidden", "true");
    }
    // The drawing itself takes the focus, for the arrow keys; the button around it does nothing.
    const frame = document.querySelector("#seen button:has(> .image-frame)");
    set(frame, "tabindex", "-1");
    set(frame, "role", "group");
    set(frame, "aria-label", "Drawing");
  };

  const changes = { childList: true, subtree: true, attributes: true, attributeFilter: ["name"] }; // renamed when checked
  window.llavaPage.whenReady(() => new MutationObserver(nameControls).observe(document.body, changes));
})();
