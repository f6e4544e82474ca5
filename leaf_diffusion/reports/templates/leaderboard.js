for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const place = [...head.parentNode.children].indexOf(head);
    const rising = head.getAttribute("aria-sort") === "descending" ||
      (head.getAttribute("aria-sort") === null && table.dataset.falling === "yes");
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const value = row => {
      const cell = row.children[place];
      return place === 0 ? cell.textContent.trim() : cell.dataset.number === "" ? null : Number(cell.dataset.number);
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "string" ? x.localeCompare(y) : x - y;
      return rising ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
