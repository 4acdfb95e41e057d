// Elements and text. What others wrote reaches the page through `shown` and `textContent` alone.

const UNSEEN = /[\p{Cc}\p{Cs}\u202a-\u202e\u2066-\u2069]|(?<=\p{M}{8})\p{M}/gu;

/** Text as a reader can see it: what has no glyph, turns its neighbours' direction or piles up is written as \uXXXX. */
export function shown(value) {
  return String(value ?? "").replace(UNSEEN, (mark) =>
    mark === "\n" || mark === "\t" ? mark : "\\u" + mark.codePointAt(0).toString(16).padStart(4, "0"));
}

export function element(tag, classes = "", ...children) {
  const node = document.createElement(tag);
  node.className = classes;
  node.append(...children.map((child) => (child instanceof Node ? child : shown(child))));
  return node;
}

/** Write text only where it differs: a selection, a focus and a screen reader's place outlive an update. */
export function write(node, text, classes) {
  const value = shown(text);
  if (node.textContent !== value) node.textContent = value;
  if (classes !== undefined && node.className !== classes) node.className = classes;
}

/** A <dl> of [name, value, classes] in a fixed order. */
export function list(node, pairs) {
  while (node.children.length > pairs.length) node.lastElementChild.remove();
  while (node.children.length < pairs.length) node.append(element("div", "", element("dt"), element("dd")));
  pairs.forEach(([name, value, classes = ""], place) => {
    const [term, definition] = node.children[place].children;
    write(term, name);
    write(definition, value, classes);
  });
}

/**
 * Rows into a <table>. A row keeps its element while its key stays.
 * columns: {name, cell(row) -> text or [text, classes], classes, link(row) -> href}; empty: what stands where no rows are.
 */
export function table(node, columns, rows, key, empty, current = null) {
  if (!node.tHead) {
    const head = node.createTHead().insertRow();
    for (const column of columns) {
      const cell = element("th", column.classes, column.name);
      cell.scope = "col";
      head.append(cell);
    }
    node.createTBody();
    node.after(element("p", "none"));
  }
  node.hidden = !rows.length;
  node.nextElementSibling.hidden = Boolean(rows.length);
  write(node.nextElementSibling, empty);
  const body = node.tBodies[0];
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  rows.forEach((values, place) => {
    const name = String(key(values));
    const row = old.get(name) ?? newRow(columns, name);
    old.delete(name);
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null);
    columns.forEach((column, index) => {
      const [text, classes] = [column.cell(values)].flat();
      const inside = row.cells[index].firstElementChild;
      write(inside, text, `${column.link ? "" : "clip"} ${classes ?? ""}`.trim());
      if (column.link && inside.getAttribute("href") !== column.link(values)) inside.setAttribute("href", column.link(values));
    });
    if (name === current) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  });
  while (body.rows.length > rows.length) body.lastElementChild.remove();
}

function newRow(columns, name) {
  const row = element("tr");
  row.dataset.key = name;
  for (const column of columns) row.append(element("td", column.classes, element(column.link ? "a" : "span")));
  return row;
}

const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export function count(value) {
  return value === null || value === undefined ? "–" : GROUPED.format(value);
}

export function score(value) {
  return typeof value === "number" ? String(Number(value.toPrecision(3))).replace("-", "−") : "–";
}

export function duration(seconds) {
  if (typeof seconds !== "number") return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}
