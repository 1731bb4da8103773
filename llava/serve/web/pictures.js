// The picture: files are checked before they are uploaded, questions wait for an upload, which can be stopped, and no
// action that fails or is left unfinished takes the picture away. Loaded after `page.js`.
(() => {
  "use strict";
  const page = window.llavaPage;
  const MAX_NAME = 40; // characters of a file's name in a message
  const PAUSE = 250; // milliseconds before a line says that the picture is cut; most are drawn sooner
  let kept = null, isRemoving = false, reason = ""; // the picture that is open, and whether the cross was pressed
  let adding = []; // the files chosen last with "+ Picture"
  const uploads = new Set(); // those under way

  const field = () => document.querySelector("#picture input[type=file]");
  const isShown = () => document.querySelector("#picture .image-frame img") !== null;
  const isOpen = () => kept !== null && document.querySelector("#seen img") !== null;
  const isReplacing = () => [...uploads].some(({ name }) => name === "open"); // Gradio shows no field meanwhile
  const stop = (event) => { event.preventDefault(); event.stopImmediatePropagation(); };
  // Gradio empties its picture before each upload and with each choice of a source; this puts it back.
  const restore = () => setTimeout(() => {
    if (isOpen() && !isShown() && !isReplacing()) document.querySelector("#restore-picture")?.click();
  });
  const refuse = (text) => { reason = text; document.querySelector("#refuse-picture")?.click(); };

  const SVG = "image/svg+xml";
  const isPicture = (type) => type.startsWith("image/") && type !== SVG;

  // What is wrong with a file, in words; empty if nothing is.
  const nameOf = ({ name }) => name.length > MAX_NAME ? name.slice(0, MAX_NAME) + "…" : name;
  const findFault = (file) => {
    if (isPicture(file.type)) return findExcess(file);
    if (file.type === SVG) return `${nameOf(file)} is an SVG drawing. Choose a PNG, JPEG or WebP picture.`;
    return `${nameOf(file)} is not a picture. Choose another file.`;
  };
  const findExcess = (file) => {
    const most = window.gradio_config?.max_file_size ?? Infinity;
    if (file.size <= most) return "";
    return `${nameOf(file)} is larger than ${Math.floor(most / 2 ** 20)} MB. Choose a smaller picture.`;
  };

  // Stop ends uploads, also one that would never end, and so does another picture.
  const stopUploads = async () => {
    const stopped = [...uploads];
    if (stopped.length === 0) return;
    for (const { end, controller } of stopped) { end({ isStopped: true }); controller.abort(); }
    await Promise.allSettled(stopped.map(({ reply }) => reply));
    await new Promise((resolve) => setTimeout(resolve)); // Gradio shows its field again
  };
  const canOpen = () => field() !== null || isReplacing();
  const openPicture = async (file) => {
    if (isReplacing()) await stopUploads();
    if (!field()) return; // the camera was chosen meanwhile
    const files = new DataTransfer();
    files.items.add(file);
    field().files = files.files;
    field().dispatchEvent(new Event("change", { bubbles: true }));
  };
  const chooseFile = async () => {
    if (isReplacing()) await stopUploads();
    if (!field()) return;
    field().value = "";
    field().click();
  };
  addEventListener("change", (event) => {
    const { target } = event;
    if (target.type !== "file") return;
    const files = [...target.files], isAdded = target !== field();
    const fault = files.map(isAdded ? findExcess : findFault).find(Boolean); // the server says which of several it leaves out
    adding = isAdded && !fault ? files : [];
    if (!fault) return;
    stop(event);
    target.value = "";
    refuse(fault);
  }, true);
  addEventListener("drop", (event) => {
    if (!event.target.closest?.("#picture")) return;
    const files = [...event.dataTransfer?.files ?? []];
    const fault = files.length > 0 ? files.map(findFault).find(Boolean) : "This is not a file. Choose a picture.";
    if (!fault && !isReplacing()) return;
    stop(event);
    field()?.parentElement.dispatchEvent(new DragEvent("dragleave")); // else the frame stays marked
    if (fault) refuse(fault); else openPicture(files[0]);
  }, true);

  // A pasted picture is opened as one that is dropped; Gradio listens on a button alone.
  addEventListener("paste", (event) => {
    const { files = [], types = [] } = event.clipboardData ?? {};
    const isTyping = event.target.closest?.("input, textarea") && types.includes("text/plain"); // as from a word processor
    const file = [...files].find(({ type }) => isPicture(type));
    if (!file || isTyping || !canOpen()) return;
    event.preventDefault();
    openPicture(file);
  });
  const readClipboard = async () => {
    let items;
    try {
      items = await navigator.clipboard.read();
    } catch {
      refuse("The browser does not let this page read the clipboard. Allow it, or paste the picture with the keyboard.");
      return;
    }
    for (const item of items) {
      const type = item.types.find(isPicture);
      if (!type) continue;
      openPicture(new File([await item.getType(type)], `clipboard.${type.slice("image/".length)}`, { type }));
      return;
    }
    refuse("There is no picture in the clipboard. Copy one, then paste it.");
  };

  // Gradio's buttons for sources empty the picture at once. The clipboard is read before; "Upload file" opens the dialog.
  addEventListener("click", (event) => {
    const name = event.target.closest?.("#picture button")?.getAttribute("aria-label");
    if (name === "Remove Image") isRemoving = true;
    if (name === "Paste from clipboard" && canOpen()) { stop(event); readClipboard(); }
    if (name !== "Upload file") return;
    if (!isReplacing() && (!isShown() || !field())) { restore(); return; } // from the camera
    stop(event);
    chooseFile();
  }, true);

  // An upload is an edit of the conversation from its first byte, so that what is pressed meanwhile waits for it.
  const STREAM = { "Content-Type": "text/event-stream" };
  const STOPPED = "The upload was stopped. A question that waited for it is in its box again.";
  const send = window.fetch.bind(window);
  const filesOf = ({ method, body } = {}) => method === "POST" && body instanceof FormData ? body.getAll("files") : [];
  window.fetch = async (target, options) => {
    // While the camera waits, Gradio asks for the progress of an upload that there is not, and fails at the 404.
    if (String(target?.url ?? target).endsWith("/upload_progress?upload_id=")) return new Response(null, { headers: STREAM });
    const files = filesOf(options);
    if (files.length === 0) return send(target, options);
    const isAdded = files.every(({ name, size }) => adding.some((each) => each.name === name && each.size === size));
    if (isAdded) adding = []; else stopUploads();
    const name = isAdded ? "add" : "open", controller = new AbortController();
    const upload = { name, controller, end: page.beginUpload(name) };
    uploads.add(upload);
    upload.reply = sendUpload(upload, target, { ...options, signal: controller.signal });
    return upload.reply;
  };
  const sendUpload = async (upload, target, options) => {
    try {
      const reply = await send(target, options);
      const [path] = reply.ok ? await reply.clone().json() : [];
      upload.end({ isDone: path !== undefined && path !== kept?.path }); // Gradio may report no change if the same picture is chosen again
      if (path === undefined) restore();
      return reply;
    } catch (error) {
      upload.end({});
      restore();
      if (!options.signal.aborted) throw error;
      return { ok: true, json: async () => { throw new Error(STOPPED); } }; // what Gradio shows as it is
    } finally {
      uploads.delete(upload);
    }
  };

  // An example is opened by the browser alone, from the click on, so that a question asked next comes after it.
  addEventListener("click", (event) => {
    const button = event.target.closest?.("#examples .gallery-item");
    if (!button) return;
    stopUploads();
    const { props } = window.gradio_config.components.find((each) => each.props.elem_id === "examples");
    const [example] = props.samples[[...button.parentElement.children].indexOf(button)];
    if (example.path !== kept?.path) page.beginOpen();
    kept = example;
    document.querySelector("#restore-picture")?.click();
  }, true);

  // While a picture is drawn, the card says so.
  const drawn = new Set(); // names of the events that draw
  const showDrawing = () => {
    const line = document.querySelector("#cutting p"), text = drawn.size > 0 ? "Cutting the picture…" : "";
    document.querySelector("#sees-card")?.setAttribute("aria-busy", String(drawn.size > 0));
    if (line && line.textContent !== text) line.textContent = text;
  };

  Object.assign(page, {
    stopUploads,
    // The inputs of the event that opens a picture. An emptied picture is sent only where the visitor removed it, else
    // the one that is open, which the server takes for a repetition.
    async open(inputs) {
      const isLost = inputs[2] === null && !isRemoving && isOpen();
      isRemoving = false;
      if (!isLost) kept = inputs[2];
      return page.sendOpen([inputs[0], inputs[1], kept, ...inputs.slice(3)]);
    },
    keptPicture: () => kept,
    takeReason: () => [reason],
    beginDrawing(name) {
      drawn.add(name);
      setTimeout(showDrawing, PAUSE);
    },
    endDrawing(name) {
      drawn.delete(name);
      showDrawing();
    },
  });
})();
