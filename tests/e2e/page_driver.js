// Runs behind the page's own script: does what a reader would do and sends what is seen to /result.
"use strict";
(async () => {
  const seen = [], talk = element("talk");
  const texts = (name) => [...talk.querySelectorAll("." + name)].map((block) => block.textContent);
  const until = async (what, holds) => {
    for (let i = 0; i < 2000; ++i) {
      if (holds()) return;
      await new Promise((resume) => setTimeout(resume, 5));
    }
    seen.push("never: " + what);
  };
  const say = (text) => {
    element("text").value = text;
    element("form").requestSubmit();
  };
  const isIdle = () => running === null;

  await until("the model's name", () => element("model").textContent !== "");
  element("temperature").value = "0";
  element("most").value = "12";
  say("<b>Lily</b>");
  await until("an answer", () => isIdle() && texts("assistant").length === 1);
  seen.push({ user: texts("user"), markup: talk.querySelectorAll("b").length, answer: texts("assistant"), facts: texts("facts"),
              messages: messages.length });

  element("most").value = "400";
  say("Tim");
  await until("a first piece", () => (texts("assistant")[1] || "") !== "");
  const isStop = element("send").textContent === "Stop";
  element("form").requestSubmit();
  await until("the stop", isIdle);
  seen.push({ isStop, messages: messages.length, kept: messages[3].content === texts("assistant")[1] });

  say("Ben");
  await until("a first piece", () => (texts("assistant")[2] || "") !== "");
  element("clear").click();
  await until("the end", isIdle);
  seen.push({ left: talk.children.length, messages: messages.length });

  element("mode").value = "text";
  element("budget").value = "1";
  say("Once");
  await until("an error", () => isIdle() && texts("problem").length === 1);
  seen.push({ problem: texts("problem"), empty: texts("assistant").length });

  element("budget").value = "";
  element("most").value = "4";
  say("Once upon");
  await until("a text", () => isIdle() && texts("assistant").length === 1);
  seen.push({ text: texts("assistant"), messages: messages.length });

  return seen;
})().catch((error) => String(error)).then((seen) => fetch("result", { method: "POST", body: JSON.stringify(seen) }));
