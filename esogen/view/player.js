"use strict";
{
  const $ = (id) => document.getElementById(id);
  const reel = JSON.parse($("data").textContent);
  const page = $("page"), scrub = $("scrub"), play = $("play");
  const FRESH = 1.1; // seconds in which a piece counts as just decided
  let story, spans = [], step = 0, timer = 0;

  const colorOf = (decided, certainty) => {
    const by = $("by").value, colors = reel.colors[by];
    if (by === "certainty") return colors[(certainty >= reel.unsure) + (certainty >= reel.sure)];
    if (by === "order") return colors[Math.floor(decided * colors.length / story.calls)];
    return colors[decided % colors.length];
  };
  const pace = (call) => (call < story.diffusion ? story.pace[0] : story.pace[1]);

  function open(number) {
    story = reel.texts[number];
    page.textContent = "";
    spans = [];
    for (const [text, decided, certainty] of story.pieces) {
      const [, before, word, after] = /^(\s*)([^]*?)(\s*)$/.exec(text);
      const span = document.createElement("span");
      span.textContent = word;
      page.append(before, span, after);
      spans.push({ span, word, decided, certainty, before, after });
    }
    const late = story.calls - story.diffusion;
    const name = (phase, n) => (n ? `${phase}, ${n} step${n > 1 ? "s" : ""}` : "");
    $("phase1").textContent = name("diffusion", story.diffusion);
    $("phase2").textContent = name("sequential", late);
    $("diffusion").style.flex = `${story.diffusion * story.pace[0]} 0 0`;
    $("sequential").style.flex = `${late * story.pace[1]} 0 0`;
    scrub.max = story.calls;
    color();
    show(0);
  }

  function color() {
    page.classList.toggle("stays", $("by").value !== "certainty");
    for (const { span, decided, certainty } of spans)
      if (decided >= 0) span.style.setProperty("--c", colorOf(decided, certainty));
    const legend = $("legend"), colors = reel.colors[$("by").value];
    legend.textContent = "";
    reel.legend[$("by").value].forEach((words, i, all) => {
      const entry = document.createElement("span");
      entry.textContent = words;
      entry.style.setProperty("--c", colors[Math.round(i * (colors.length - 1) / Math.max(1, all.length - 1))]);
      legend.append(entry);
    });
  }

  function show(to) {
    step = Math.max(0, Math.min(story.calls, to));
    const last = step - 1, window = Math.max(1, Math.ceil(FRESH / pace(last) / 2));
    let masks = 0;
    for (const { span, decided } of spans) {
      let kind = "g";
      if (decided >= step) { kind = "m"; masks++; }
      else if (decided >= 0)
        kind = (step < story.calls && decided > last - window ? "f" : "d") + (decided >= story.diffusion ? " s" : "");
      if (span.className !== kind) span.className = kind;
    }
    const late = step > 0 && last >= story.diffusion, done = step === story.calls;
    page.classList.toggle("late", late);
    $("phase1").classList.toggle("on", done || (step > 0 && !late));
    $("phase2").classList.toggle("on", done || late);
    const share = (n, of) => `${of ? 100 * Math.max(0, Math.min(1, n / of)) : 0}%`;
    $("diffusion").style.setProperty("--done", share(step, story.diffusion));
    $("sequential").style.setProperty("--done", share(step - story.diffusion, story.calls - story.diffusion));
    $("count").textContent = done ? `${story.calls} steps` : `step ${step} of ${story.calls} · ${masks} masks left`;
    scrub.value = step;
    const phase = done ? "finished" : step === 0 ? "not begun" : late ? "sequential phase" : "diffusion phase";
    scrub.setAttribute("aria-valuetext", `step ${step} of ${story.calls}, ${phase}, ${masks} masks left`);
    if (!timer) describe();
  }

  function describe() {
    const words = spans.map(({ span, word, before, after }) =>
      before + (span.className === "m" ? "\u2026" : word) + after);
    page.setAttribute("aria-label", words.join("").replace(/(\u2026\s*)+/g, "\u2026 "));
    $("said").textContent = scrub.getAttribute("aria-valuetext");
  }

  function advance() {
    if (step >= story.calls) return pause();
    show(step + 1);
    timer = setTimeout(advance, 1000 * pace(step - 1) / Number($("speed").value));
  }
  function start() {
    if (step >= story.calls) show(0);
    timer = setTimeout(advance, 700 / Number($("speed").value));
    play.className = "playing";
    play.setAttribute("aria-label", "Pause");
    $("said").textContent = "playing";
  }
  function pause() {
    clearTimeout(timer);
    timer = 0;
    play.className = "";
    play.setAttribute("aria-label", "Play");
    describe();
  }
  const go = (to) => { pause(); show(to); };
  function turn(by) {
    const number = (Number($("text").value) + by + reel.texts.length) % reel.texts.length;
    $("text").value = number;
    pause();
    open(number);
  }

  play.addEventListener("click", () => (timer ? pause() : start()));
  $("back").addEventListener("click", () => go(step - 1));
  $("next").addEventListener("click", () => go(step + 1));
  scrub.addEventListener("input", () => go(Number(scrub.value)));
  $("by").addEventListener("change", color);
  $("text").addEventListener("change", () => turn(0));
  const keys = {
    " ": () => (timer ? pause() : start()), ArrowLeft: () => go(step - 1), ArrowRight: () => go(step + 1),
    Home: () => go(0), End: () => go(story.calls), n: () => turn(1), p: () => turn(-1),
  };
  document.addEventListener("keydown", (event) => {
    const tag = event.target.tagName, act = keys[event.key];
    if (!act || event.ctrlKey || event.altKey || event.metaKey || tag === "SELECT") return;
    if (tag === "INPUT" && event.key !== " " && event.key.length > 1) return;
    if ((tag === "BUTTON" || tag === "SUMMARY") && event.key === " ") return;
    event.preventDefault();
    act();
  });

  reel.texts.forEach((each, i) => {
    const option = document.createElement("option");
    option.value = i;
    option.textContent = each.index + 1;
    $("text").append(option);
  });
  $("which").hidden = reel.texts.length < 2;
  $("by").value = reel.by;
  open(0);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) start();
}
