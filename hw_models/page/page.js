"use strict";
(() => {
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.querySelectorAll("thead th")];
    for (const cell of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const down = cell.getAttribute("aria-sort") !== "descending";
        heads.forEach((th) => th.removeAttribute("aria-sort"));
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[cell.cellIndex].dataset.value ?? row.cells[cell.cellIndex].textContent;
        const body = table.tBodies[0];
        const numbers = [...body.rows].every((row) => key(row) === "" || !isNaN(key(row)));
        const value = (row) => (key(row) === "" ? -Infinity : Number(key(row)));
        [...body.rows]
          .sort((a, b) => {
            const [x, y] = down ? [b, a] : [a, b];
            return numbers ? (value(x) === value(y) ? 0 : value(x) - value(y)) : key(x).localeCompare(key(y));
          })
          .forEach((row) => body.append(row));
      });
    }
  }

  const tip = document.getElementById("tip");
  const hide = () => (tip.hidden = true);
  const show = (target, x, y) => {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.width - 4))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 18}px`;
  };
  const over = (event) => event.target.closest?.("[data-tip]");
  document.addEventListener("pointermove", (event) => {
    const target = over(event);
    target ? show(target, event.clientX, event.clientY) : hide();
  });
  document.addEventListener("focusin", (event) => {
    const target = over(event);
    if (!target) return hide();
    const box = target.getBoundingClientRect();
    show(target, box.left, box.bottom - 12);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("scroll", hide, true);

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((part) => (part.open = true));
  });
  addEventListener("afterprint", () => closed.forEach((part) => (part.open = false)));
})();
