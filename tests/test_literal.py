"""What somebody else wrote (a name, a path, a class, a device, an error) is shown as it is and obeyed by nothing."""

from __future__ import annotations

IMAGE, SCRIPT = "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script><!--"
SAMPLES = [
    IMAGE,
    SCRIPT,
    "[x](javascript:alert(1)) ![](http://evil.example/p.png) <http://evil.example> [^1] [x]: http://evil.example",
    "http://evil.example/a https://evil.example?b=c www.evil.example WWW.evil.example mailto:a@evil.example a@b.co",
    "**b** _i_ ~~s~~ `c` `` c ``` *i* __b__",
    "# h", "- item", "+ item", "* item", "1. one", "2) two", "> quote", "    code", "---", "===", "***", "| a | b |",
    "- [ ] task", "```", "~~~", "<!-- gone -->", "<details>", "Term\n: x", "a | b\n--|--\n1 | 2", "line\nbreak  \nhard",
    "$x^2$ $$y$$ costs $5 and $6",
    ":red[x] :blue-background[y] :green-badge[z] :small[s] :help[h] :color[c]{foreground=red} :rainbow[r] :shimmer[q]",
    ":material/home: :material_home: :streamlit: :smile: :+1: :-1: ::: ::name[x]{a=b} :::name",
    "a -> b <- c <-> d -- e >= f <= g ~= h", "->", "--", ">=",
    "&lt;b&gt; &amp; &#60; &nbsp; &copy;",
    r"\ \* \\ C:\new\table \n \x1b",
    "nul \0 bell \a escape \x1b[31mred\x1b]0;title\x07 csi \x9b31m delete \x7f tab\tcr\rover",
    "right \u202eto left\u202c \u2066isolated\u2069 \u200bzero \ufeffmark \u2028line",
    "lone \ud800 surrogate \udc80",
    "z" + "\u0300\u0301\u0302\u0303\u0304\u0305" * 20 + "algo, but café and cafe\u0301 stay",
    "<b>bold</b> <a href=\"javascript:alert(1)\">a</a> %{x} %{customdata[0]} <extra>e</extra> {0} {x} %s %(a)s $x$",
    "=cmd|' /C calc'!A0", "@SUM(1+1)", "שלום עולם, 你好, 👩\u200d👩\u200d👧, नमस्ते",
    "x" * 10_000,
]  # fmt: skip
