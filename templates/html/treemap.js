// A treemap of [name, size, children, kind]: squarified (Bruls, Huizing, van Wijk), zoomed by click or Enter.
(() => {
  "use strict";
  const map = document.getElementById("treemap");
  if (!map) return;
  const crumbs = document.getElementById("crumbs"), under = document.getElementById("under");
  const root = JSON.parse(document.getElementById("tree").textContent);
  const HEADER = 18, GAP = 2;
  let path = [root], kinds = new Map();

  const size = (bytes) => {
    let unit = 0;
    while (bytes >= 999.5 && unit < 4) { bytes /= 1000; unit += 1; }
    const text = unit && bytes < 9.95 ? bytes.toFixed(1) : Math.round(bytes);
    return `${text} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
  };
  const share = (bytes) => `${(100 * bytes / (root[1] || 1)).toFixed(1)} %`;

  // Yields [node, x, y, width, height] of each child, in rows along the shorter side.
  function* squarify(nodes, x, y, width, height) {
    const items = nodes.filter((node) => node[1] > 0);
    let left = items.reduce((sum, node) => sum + node[1], 0), at = 0;
    while (at < items.length && width > 0 && height > 0) {
      const side = Math.min(width, height), scale = width * height / left;
      let row = 0, end = at, worst = Infinity;
      for (; end < items.length; end += 1) {
        const sum = (row + items[end][1]) * scale, edge = sum / side;
        const ratios = [items[at], items[end]].map((node) => node[1] * scale / edge / edge);
        const next = Math.max(...ratios.map((ratio) => Math.max(ratio, 1 / ratio)));
        if (next > worst) break;
        worst = next;
        row += items[end][1];
      }
      const thick = row * scale / side;
      let along = 0;
      for (const node of items.slice(at, end)) {
        const long = node[1] * scale / thick;
        yield width < height ? [node, x + along, y, long, thick] : [node, x, y + along, thick, long];
        along += long;
      }
      if (width < height) { y += thick; height -= thick; } else { x += thick; width -= thick; }
      left -= row;
      at = end;
    }
  }

  const label = (way) => way.slice(1).map((node) => node[0]).join(" / ") || root[0];

  function cell(way, kind, x, y, width, height, opened) {
    const node = way[way.length - 1], made = document.createElement("button");
    made.type = "button";
    made.tabIndex = -1;
    made.className = `cell ${kind}${node[2] ? " group" : ""}${opened ? " opened" : ""}`;
    Object.assign(made.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
    if (width > 34 && height > 15) {
      const name = document.createElement("span");
      name.textContent = opened ? `${node[0]}  ${size(node[1])}` : node[0];
      made.append(name);
      if (!opened && height > 34) {
        const bytes = document.createElement("span");
        bytes.textContent = size(node[1]);
        made.append(bytes);
      }
    }
    made.setAttribute("aria-label", `${label(way)}, ${size(node[1])}${node[2] ? ", opens" : ""}`);
    const show = () => { under.textContent = `${label(way)}: ${size(node[1])} (${node[1].toLocaleString("en")} bytes), ${share(node[1])} of the image`; };
    made.addEventListener("mouseenter", show);
    made.addEventListener("focus", show);
    made.addEventListener("click", () => { if (node[2]) zoom(way, true); });
    map.append(made);
  }

  function draw(way, kind, x, y, width, height, depth) {
    const nodes = way[way.length - 1][2] || [];
    for (const [node, left, top, wide, high] of squarify(nodes, x, y, width, height)) {
      if (wide < 2 || high < 2) continue;
      const own = [...way, node], sort = kinds.get(node) || kind;
      const opened = Boolean(node[2]) && depth < 3 && wide > 60 && high > 48;
      cell(own, sort, left, top, wide, high, opened);
      if (opened) draw(own, sort, left + GAP, top + HEADER, wide - 2 * GAP, high - HEADER - GAP, depth + 1);
    }
  }

  function zoom(way, focus) {
    path = way;
    map.replaceChildren();
    const kind = way.map((node) => kinds.get(node)).find(Boolean) || "";
    draw(way, kind, 0, 0, map.clientWidth, map.clientHeight, 1);
    crumbs.replaceChildren(...way.flatMap((node, at) => {
      const made = document.createElement("button"), between = document.createElement("span");
      made.type = "button";
      made.textContent = node[0];
      made.disabled = at === way.length - 1;
      made.addEventListener("click", () => zoom(way.slice(0, at + 1), true));
      between.textContent = "/";
      return at ? [between, made] : [made];
    }));
    const last = way[way.length - 1];
    under.textContent = `${label(way)}: ${size(last[1])}, ${share(last[1])} of the image`;
    const first = map.querySelector("button");
    if (first) first.tabIndex = 0;
    if (focus && first) first.focus();
  }

  map.addEventListener("keydown", (event) => {
    const cells = [...map.querySelectorAll("button")], at = cells.indexOf(document.activeElement);
    const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: cells.length - 1 }[event.key];
    if (event.key === "Escape" || event.key === "Backspace") {
      if (path.length > 1) zoom(path.slice(0, -1), true);
    } else if (next === undefined || !cells[next]) return;
    else {
      cells.forEach((each) => { each.tabIndex = -1; });
      cells[next].tabIndex = 0;
      cells[next].focus();
    }
    event.preventDefault();
  });
  for (const layer of root[2] || []) kinds.set(layer, layer[3]);
  let width = 0;
  new ResizeObserver(() => {
    if (map.clientWidth !== width) { width = map.clientWidth; zoom(path, false); }
  }).observe(map);
})();
