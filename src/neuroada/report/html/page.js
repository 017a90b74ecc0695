"use strict";
(() => {
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const toggle = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const name = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
  toggle.hidden = false;
  toggle.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  prefersDark.addEventListener("change", name);
  name();

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
  };
  const isMissing = (value) => value === "—" || value === "" || Number.isNaN(value);
  const compare = (left, right) =>
    typeof left === "number" && typeof right === "number"
      ? left - right
      : String(left).localeCompare(String(right), undefined, { numeric: true });

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const rows = [...body.rows];
        const numeric = rows.some((row) => "sort" in row.cells[column].dataset);
        const before = head.getAttribute("aria-sort");
        const descending = before ? before === "ascending" : numeric;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        rows.sort((one, two) => {
          const [left, right] = [valueOf(one, column), valueOf(two, column)];
          if (isMissing(left) || isMissing(right)) return isMissing(left) - isMissing(right);
          return descending ? compare(right, left) : compare(left, right);
        });
        body.append(...rows);
      });
    });
  }

  for (const section of document.querySelectorAll(".examples")) {
    const form = section.querySelector(".filters");
    const output = form.querySelector("output");
    const examples = [...section.querySelectorAll(".example")];
    const apply = () => {
      const wanted = [...form.querySelectorAll("select")].filter((select) => select.value);
      for (const example of examples) {
        example.hidden = wanted.some((select) => example.dataset[select.name] !== select.value);
      }
      for (const group of section.querySelectorAll(".group")) {
        group.hidden = !group.querySelector(".example:not([hidden])");
        group.open = group.open || wanted.length > 0;
      }
      output.textContent = `${examples.filter((example) => !example.hidden).length} of ${examples.length} examples`;
    };
    form.hidden = false;
    form.addEventListener("change", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }
})();
