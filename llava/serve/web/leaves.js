// Says of the leaf under the pointer, the last tap or the arrow keys how large it is and what share of the answer it has.
(() => {
  "use strict";
  const STEPS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
  let text = "", data = null, chosen = -1; // the leaves as text and as data, and the one that is outlined

  const image = () => document.querySelector("#seen img");
  const outline = () => {
    let box = document.querySelector("#leaf-outline");
    if (!box) { box = document.createElement("div"); box.id = "leaf-outline"; document.querySelector("#seen").append(box); }
    return box;
  };

  // The picture inside its element, which may be wider or higher.
  const drawn = (img) => {
    const box = img.getBoundingClientRect();
    const scale = Math.min(box.width / img.naturalWidth, box.height / img.naturalHeight) || 1;
    const [width, height] = [img.naturalWidth * scale, img.naturalHeight * scale];
    return { left: box.left + (box.width - width) / 2, top: box.top + (box.height - height) / 2, width, height };
  };
  // One leaf in shares of the picture: [left, top, width, height].
  const place = ([row, col, size]) => {
    const [left, top, right, bottom] = data.frame, [rows, cols] = data.grid;
    const [width, height] = [(right - left) / cols, (bottom - top) / rows];
    return [left + col * width, top + row * height, size * width, size * height];
  };
  const find = (x, y) => data.leaves.findIndex((leaf) => {
    const [left, top, width, height] = place(leaf);
    return x >= left && x < left + width && y >= top && y < top + height;
  });

  const hide = () => { chosen = -1; document.querySelector("#leaf-outline")?.remove(); };
  const read = () => {
    const now = document.querySelector("#leaf")?.dataset.leaves ?? "";
    if (now === text) return data;
    text = now;
    data = now ? JSON.parse(now) : null;
    hide();
    return data;
  };
  const show = (index) => {
    const img = image();
    if (index < 0 || index === chosen || !img) return;
    chosen = index;
    const [left, top, width, height] = place(data.leaves[index]);
    const [all, card] = [drawn(img), document.querySelector("#seen").getBoundingClientRect()];
    Object.assign(outline().style, {
      left: `${all.left - card.left + left * all.width}px`, top: `${all.top - card.top + top * all.height}px`,
      width: `${width * all.width}px`, height: `${height * all.height}px`,
    });
    const [wide, high] = data.cell.map((side) => Math.round(side * data.leaves[index][2]));
    const share = data.shares ? `, ${data.shares[index]} % of the answer` : "";
    document.querySelector("#leaf").textContent = `${wide} × ${high} px, 1 of ${data.leaves.length} tokens${share}`;
  };

  const point = (event) => {
    const img = event.target.closest?.("#seen img");
    if (!img || !read()) return;
    const all = drawn(img);
    show(find((event.clientX - all.left) / all.width, (event.clientY - all.top) / all.height));
  };
  const step = (event) => {
    if (!event.target.closest?.("#seen img") || !(event.key in STEPS) || !read()) return;
    event.preventDefault();
    if (chosen < 0) { show(0); return; }
    const [left, top, width, height] = place(data.leaves[chosen]), [right, down] = STEPS[event.key];
    const [x, y] = [left + width / 2, top + height / 2], [cellX, cellY] = [1 / data.grid[1] / 2, 1 / data.grid[0] / 2];
    show(find(x + right * (width / 2 + cellX * (data.frame[2] - data.frame[0])),
      y + down * (height / 2 + cellY * (data.frame[3] - data.frame[1]))));
  };
  const prepare = () => {
    read();
    const img = image(), alt = document.querySelector("#meter .meter")?.dataset.alt;
    if (img && alt && img.alt !== alt) img.alt = alt; // what the drawing shows, see `token_meter`
    if (!img || (img.tabIndex === 0) === Boolean(data)) return;
    img.tabIndex = data ? 0 : -1;
    img.setAttribute("aria-describedby", "leaf");
  };

  addEventListener("pointermove", point);
  addEventListener("pointerdown", point);
  addEventListener("keydown", step);
  addEventListener("resize", hide);
  const changes = { childList: true, subtree: true };
  window.llavaPage.whenReady(() => new MutationObserver(prepare).observe(document.body, changes));
})();
