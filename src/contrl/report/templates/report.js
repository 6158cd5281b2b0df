"use strict";
// The page's own script: what only works with scripts is shown, the matrix changes its view, samples are filtered,
// and a chart that comes into sight is drawn anew with tooltips, at the width of its column.
(() => {
  document.documentElement.classList.add("js");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  for (const button of all("button[data-view]")) {
    button.addEventListener("click", () => {
      document.getElementById(button.getAttribute("aria-controls")).dataset.shows = button.dataset.view;
      for (const other of all("button[data-view]", button.parentElement)) {
        other.setAttribute("aria-pressed", String(other === button));
      }
    });
  }

  // A card is shown when it, or one of its answers, has every chosen value.
  const fits = (element, wanted) => wanted.every(([key, value]) => element.dataset[key] === value);
  for (const form of all("form[data-filters]")) {
    const cards = all(`[data-filtered="${form.dataset.filters}"]`);
    const filter = () => {
      const wanted = all("select", form).filter((select) => select.value).map((select) => [select.dataset.key, select.value]);
      let shown = 0;
      for (const card of cards) {
        const own = wanted.filter(([key]) => key in card.dataset);
        const rest = wanted.filter(([key]) => !(key in card.dataset));
        const answers = all(".answer", card);
        card.hidden = !(fits(card, own) && (rest.length === 0 || answers.some((answer) => fits(answer, rest))));
        for (const answer of answers) answer.classList.toggle("found", rest.length > 0 && fits(answer, rest));
        shown += card.hidden ? 0 : 1;
      }
      form.querySelector("output").textContent = `${shown} of ${cards.length} shown`;
    };
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", filter);
    form.addEventListener("reset", () => setTimeout(filter));
    filter();
  }

  const rows = ({ columns, rows }) => rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
  const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  const enliven = (figure) => {
    const { fluid, spec, data } = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
    spec.datasets = Object.fromEntries(Object.entries(data).map(([name, table]) => [name, rows(table)]));
    if (fluid) Object.assign(spec, { width: "container", autosize: { type: "fit-x", contains: "padding" } });
    const holder = figure.querySelector(".chart"), target = document.createElement("div");
    target.className = "live";
    target.setAttribute("role", "img");
    target.setAttribute("aria-label", holder.querySelector("desc").textContent);
    holder.append(target);
    const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: { theme: isDark() ? "dark" : "light" } };
    return window.vegaEmbed(target, spec, options).then(
      () => holder.classList.add("is-live"),
      (error) => { target.remove(); console.error(`chart ${figure.dataset.chart}: ${error}`); },
    );
  };
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      enliven(target);
    }
  }, { rootMargin: "300px" });
  for (const figure of all("figure[data-chart]")) observer.observe(figure);
})();
