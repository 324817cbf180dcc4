"""Rules with histories, and loops through them, of every kind."""

RULES = {
    "mean of some": "history h: size n\npush h <- g\np -= lr*sum(h, dim=0)[0]/count(h)\n",
    "a loop": "history h: size n\npush h <- g\nq = g\nfor i in h: q = 0.5*q + h[i]\np -= lr*q\n",
    "backwards, into entries": (
        "history h: size n\npush h <- g\nq = 0*g\n"
        "for i in reversed(h):\n    a[i] = dot(h[i], g)\n    b[i] = a[i]*h[i]\n"
        "for i in h: q += b[i]/(1 + abs(a[i]))\np -= lr*q/(1 + norm(q))\n"
    ),
    "numbers": (
        "history s: scalar size n\npush s <- norm(g)\ntop = 0\nfor i in s: top = max(top, s[i])\np -= lr*g/(1 + top)\n"
    ),
    "only some steps": (
        "history h: size n\nif norm(g) > 3: push h <- g\nq = g\nfor i in h: q += h[i]\np -= lr*q/(1 + count(h))\n"
    ),
    "only some elements": (
        "history h: size n\nevery 2: push h <- sign(g)\nq = g\n"
        "for i in h:\n    if norm(h[i]) > 1: q += h[i]\np -= lr*q\n"
    ),
    "two at once": (
        "history h, k: size n\nstate m\nm = 0.9*m + g\npush h <- g, k <- m\nq = 0*g\n"
        "for i in h:\n    for j in k: q += h[i]*k[j]\np -= lr*q/(1 + rms(q))\n"
    ),
    "states along the way": (
        "history h: size n\nstate m\npush h <- g\nfor i in h:\n    m = 0.9*m + h[i]\n    p -= 0.01*m\np -= lr*h[-1]\n"
    ),
    "reductions inside": "history h: size n\npush h <- g\nq = g\nfor i in h: q += h[i]/(1 + norm(q))\np -= lr*q\n",
    "what a turn does not read": (
        "history h: size n\npush h <- g\nq = g\nr = g\nfor i in h:\n    q *= 0.5\n    r = h[i]\np -= lr*(q + r)\n"
    ),
    "numbers of the host": (
        "history s: scalar size n\nhistory h: size n\npush s <- t, h <- lr*t\nw = t\n"
        "for i in h: w = w + t*s[i]\np -= lr*g*w/100 + h[-1]\n"
    ),
    "the same twice, and backwards over a tuple": (
        "hyper betas = (b1 = 0.5, b2 = 0.0)\nhistory h: size n\npush h <- g, h <- 2*g\nq = 0*g\n"
        "for b in reversed(betas): q = b*q + g\np -= lr*(q + h[0])\n"
    ),
    "nested conditions": (
        "history h: size n\nif norm(g) > 2:\n    push h <- g\n    if norm(g) > 3: push h <- -g\n"
        "    else: push h <- 2*g\nelif norm(g) > 1: push h <- p, h <- p - g\n"
        "q = 0*g\nfor i in h: q = 0.5*q + h[i]\np -= lr*(q + h[0])\n"
    ),
    "what changes afterwards": (
        "history h, k: size n\nstate m\npush h <- p, k <- m\nm = 0.9*m + g\np -= lr*(m + 0.1*h[-1])\n"
        "q = 0*g\nfor i in reversed(k): q = 0.5*q + k[i] - h[i]\np += lr*q/(1 + rms(q))\n"
    ),
    "old entries again": (
        "history h: size n\nold = h[0]\npush h <- g\npush h <- old, h <- h[0] - old\nq = g\nfor i in h: q += h[i]\n"
        "p -= lr*(q + sum(h, dim=0)[0]/n)\n"
    ),
    "alike and not alike at once": (
        "history h: size n\npush h <- g\nq = g\nr = g\nw = 0*g\n"
        "for i in h:\n    t0 = r\n    q += 0.5*h[i]\n    r = q\n    w = w + t0 - r\np -= lr*(q + r + w)\n"
    ),
    "a condition around": "history h: size n\npush h <- g\nq = g\nif t > 3:\n    for i in h: q += h[i]\np -= lr*q\n",
}
