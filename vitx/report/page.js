"use strict";
// Zoom, the masks' opacity, sorting, downloads. Without it the page can be read all the same.
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// A cell without a value has a dash.
const shown = cell => cell.textContent.trim().replace(/^\u2013$/, "");
const SECONDS = {h: 3600, min: 60, s: 1};
const number = text => {
  const times = [...text.matchAll(/([\d.]+) (h|min|s)\b/g)];
  if (times.length) return times.reduce((sum, [, value, unit]) => sum + value * SECONDS[unit], 0);
  return parseFloat(text.replace(/^\[|,(?=\d{3})/g, ""));
};
const words = new Intl.Collator("en", {numeric: true});

function sort(header) {
  const table = header.closest("table"), rows = [...table.tBodies[0].rows];
  const text = row => shown(row.cells[header.cellIndex]);
  const named = header.cellIndex === 0; // such as 2007_000032, which begins like a number
  const numeric = !named && rows.every(row => !text(row) || !isNaN(number(text(row))));
  const order = numeric ? (a, b) => number(a) - number(b) : words.compare;
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  rows.sort((a, b) => {
    const [first, second] = [text(a), text(b)];
    return first && second ? sign * order(first, second) : !first - !second; // no value: last
  });
  all("[aria-sort]", table).forEach(other => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  table.tBodies[0].append(...rows);
}

function download(table, name) {
  const field = cell => {
    // A spreadsheet would run a name that begins like a formula.
    const text = cell.className === "figure" ? shown(cell) : shown(cell).replace(/^[=+\-@]/, "'$&");
    return `"${text.replaceAll('"', '""').replace(/\s+/g, " ")}"`;
  };
  const csv = [...table.rows].map(row => [...row.cells].map(field).join(",") + "\r\n").join("");
  const file = `${name.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60)}.csv`;
  make("a", {href: `data:text/csv;charset=utf-8,${encodeURIComponent(csv)}`, download: file}).click();
}

for (const table of all("table")) {
  const rows = [...table.tBodies[0].rows];
  for (const header of all("thead th", table)) {
    if (!rows.some(row => shown(row.cells[header.cellIndex]))) continue;
    header.replaceChildren(make("button", {onclick: () => sort(header)}, ...header.childNodes));
  }
  const figure = table.closest("figure"), name = shown(figure.querySelector("figcaption"));
  const tools = make("div", {className: "tools"},
    make("button", {textContent: "CSV", ariaLabel: `CSV: ${name}`, onclick: () => download(table, name)}));
  figure.querySelector("figcaption").after(tools);
  if (table.querySelector(".over")) tools.append(opacity());
}

function opacity() {
  const value = 100 * getComputedStyle(document.documentElement).getPropertyValue("--opacity");
  return make("label", {}, "opacity of masks", make("input", {type: "range", min: 0, max: 100, value}));
}
document.addEventListener("input", ({target}) => {
  document.documentElement.style.setProperty("--opacity", target.value / 100);
  all("input").forEach(other => other.value = target.value);
});

const dialog = make("dialog", {ariaLabel: "Picture"});
document.body.append(dialog);
dialog.addEventListener("click", ({target}) => target.closest("label") || dialog.close());
function zoom(image) {
  const frame = image.parentElement;
  const tools = make("div", {className: "tools"}, make("button", {textContent: "Close", autofocus: true}));
  if (frame.matches(".over")) tools.append(opacity());
  dialog.style.setProperty("--below", getComputedStyle(image).getPropertyValue("--below"));
  dialog.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  const copy = frame.cloneNode(true);
  all("img", copy).forEach(each => ["role", "tabindex"].forEach(name => each.removeAttribute(name)));
  dialog.replaceChildren(copy, make("p", {}, image.alt), tools);
  dialog.showModal();
}
for (const image of all("img")) {
  Object.assign(image, {tabIndex: 0, onclick: () => zoom(image)});
  image.setAttribute("role", "button");
  image.onkeydown = event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    zoom(image);
  };
}
