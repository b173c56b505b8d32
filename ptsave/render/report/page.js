"use strict";
// Makes the headers of a table sort it, and lets long ones be searched; all else works without scripts.
const words = new Intl.Collator(undefined, { numeric: true });
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    if ("v" in cell.dataset) return Number(cell.dataset.v);
    if (!("n" in heads[column].dataset)) return cell.textContent;
    const number = parseFloat(cell.textContent);
    return Number.isNaN(number) ? -Infinity : number;
  };
  const compare = (a, b) => {
    if (typeof a === "string") return words.compare(a, b);
    return a === b ? 0 : a < b ? -1 : 1;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = Array.from(body.rows, (row) => [keyOf(row, column), row]);
      keyed.sort((a, b) => (down ? -compare(a[0], b[0]) : compare(a[0], b[0])));
      body.append(...keyed.map((pair) => pair[1]));
    });
  });
}
for (const table of document.querySelectorAll("table.searchable")) {
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "Search";
  field.setAttribute("aria-label", "Search the table");
  table.before(field);
  const texts = Array.from(table.tBodies[0].rows, (row) => [row, row.textContent.toLowerCase()]);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const [row, text] of texts) row.hidden = !words.every((word) => text.includes(word));
  });
}
