// Slows endless loops of animation frames. Gradio's status trackers ask for a frame in each frame while they wait, and
// one that is removed while it waits never stops: its own of the page's start does, and takes 10 % of a core where no
// GPU draws. Gradio keeps the function that it finds, so that this must run before its modules.
(() => {
  "use strict";
  const LONG = 2000, PAUSE = 100; // milliseconds: a loop that lasts longer gets a frame each PAUSE
  const request = window.requestAnimationFrame.bind(window), cancel = window.cancelAnimationFrame.bind(window);
  let begun; // when the loop began of which a callback runs
  window.requestAnimationFrame = (callback) => {
    const start = begun ?? performance.now();
    const run = (time) => { begun = start; try { callback(time); } finally { begun = undefined; } };
    if (performance.now() - start < LONG) return request(run);
    return -setTimeout(() => run(performance.now()), PAUSE);
  };
  window.cancelAnimationFrame = (id) => { if (id < 0) clearTimeout(-id); else cancel(id); };
})();
