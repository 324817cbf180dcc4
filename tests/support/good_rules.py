"""Published optimizers, written compactly: rules that must check without a word."""

from __future__ import annotations

ADAM = "hyper lr = 1e-3 >= 0, beta1 = 0.9 in [0, 1), beta2 = 0.999 in [0, 1), eps = 1e-8 >= 0\n"

GOOD: dict[str, str] = {
    "momentum": "v = beta*v + g; p -= lr*v\n",
    "adabelief": (
        "hyper lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-16, weight_decay = 0\n"
        "state m, s\n"
        "p *= 1 - lr*weight_decay\n"
        "m = beta1*m + (1 - beta1)*g\n"
        "s = beta2*s + (1 - beta2)*(g - m)^2 + eps\n"
        "p -= lr/(1 - beta1^t)*m/(sqrt(s)/sqrt(1 - beta2^t) + eps)\n"
    ),
    "adadelta": (
        "hyper lr = 1 >= 0, rho = 0.9 in [0, 1], eps = 1e-6, weight_decay = 0 >= 0\n"
        "state sq, acc\n"
        "if weight_decay: g += weight_decay*p\n"
        "sq = rho*sq + (1 - rho)*g^2\n"
        "delta = sqrt(acc + eps)/sqrt(sq + eps)*g\n"
        "acc = rho*acc + (1 - rho)*delta^2\n"
        "p -= lr*delta\n"
    ),
    "adafactor": (
        "hyper lr = 1e-2 >= 0, decay = -0.8 <= 0, eps1 = none, eps2 = 1e-3, d = 1 >= 1\n"
        "state R = 0*mean(g, dim=-1) when ndim > 1\n"
        "state C = 0*mean(g, dim=-2) when ndim > 1\n"
        "state v when ndim <= 1\n"
        "e1 = eps1 ?? eps_of(p)\n"
        "w = t^decay\n"
        "alpha = max(eps2, rms(p))*min(lr, 1/sqrt(t))\n"
        "if ndim > 1:\n"
        "    R = lerp(R, mean(g^2, dim=-1), w)\n"
        "    C = lerp(C, mean(g^2, dim=-2), w)\n"
        "    V = R*C/max(mean(R, dim=-2), e1)\n"
        "else:\n"
        "    v = lerp(v, g^2, w)\n"
        "    V = v\n"
        "u = g/sqrt(max(V, e1^2))\n"
        "p -= alpha*u/max(1, rms(u)/d)\n"
    ),
    "adagrad": (
        "hyper lr = 1e-2, lr_decay = 0 >= 0, weight_decay = 0 >= 0, initial = 0 >= 0, eps = 1e-10\n"
        "state s = initial\n"
        "if weight_decay: g += weight_decay*p\n"
        "s += g^2\n"
        "p -= lr/(1 + (t - 1)*lr_decay)*g/(sqrt(s) + eps)\n"
    ),
    "adam": (
        f"{ADAM}hyper weight_decay = 0 >= 0, amsgrad = false, maximize = false\n"
        "state m as exp_avg, v as exp_avg_sq\n"
        "state vmax as max_exp_avg_sq when amsgrad\n"
        "if maximize: g = -g\n"
        "if weight_decay: g += weight_decay*p\n"
        "m = beta1*m + (1 - beta1)*g\n"
        "v = beta2*v + (1 - beta2)*g^2\n"
        "if amsgrad: vmax = max(vmax, v)\n"
        "s = vmax if amsgrad else v\n"
        "p -= lr/(1 - beta1^t)*m/(sqrt(s)/sqrt(1 - beta2^t) + eps)\n"
    ),
    "adamax": (
        f"{ADAM}state m, u\nm = beta1*m + (1 - beta1)*g\nu = max(beta2*u, abs(g) + eps)\np -= lr/(1 - beta1^t)*m/u\n"
    ),
    "adan": (
        "hyper lr = 1e-3, beta1 = 0.98, beta2 = 0.92, beta3 = 0.99, eps = 1e-8, weight_decay = 0\n"
        "state m, d, n, g0\n"
        "y = g - g0 if not first else 0*g\n"
        "m = beta1*m + (1 - beta1)*g\n"
        "d = beta2*d + (1 - beta2)*y\n"
        "n = beta3*n + (1 - beta3)*(g + beta2*y)^2\n"
        "u = (debias(m, beta1) + beta2*debias(d, beta2))/(sqrt(debias(n, beta3)) + eps)\n"
        "p = (p - lr*u)/(1 + lr*weight_decay)\n"
        "g0 = g\n"
    ),
    "ademamix": (
        "hyper lr = 1e-3, beta1 = 0.9, beta2 = 0.999, beta3 = 0.9999, alpha = 5, warmup = none, eps = 1e-8\n"
        "state m1, m2, v\n"
        "x = 1 if warmup == none else min(t/warmup, 1)\n"
        "b3 = beta3 if x == 1 else min(exp(log(beta1)*log(beta3)/((1 - x)*log(beta3) + x*log(beta1))), beta3)\n"
        "m1 = beta1*m1 + (1 - beta1)*g\n"
        "m2 = b3*m2 + (1 - b3)*g\n"
        "v = beta2*v + (1 - beta2)*g^2\n"
        "p -= lr*(debias(m1, beta1) + alpha*x*m2)/(sqrt(debias(v, beta2)) + eps)\n"
    ),
    "adopt": (
        f"{ADAM}hyper weight_decay = 0\n"
        "state m, v\n"
        "if first:\n"
        "    v = g^2\n"
        "else:\n"
        "    p *= 1 - lr*weight_decay\n"
        "    c = t^0.25\n"
        "    m = beta1*m + (1 - beta1)*clamp(g/max(sqrt(v), eps), -c, c)\n"
        "    p -= lr*m\n"
        "    v = beta2*v + (1 - beta2)*g^2\n"
    ),
    "asgd": (
        "hyper lr = 1e-2 >= 0, lambd = 1e-4, alpha = 0.75, t0 = 1e6\n"
        "state ax\n"
        "state eta: scalar = lr\n"
        "state mu: scalar = 1\n"
        "p *= 1 - lambd*eta\n"
        "p -= eta*g\n"
        "ax += mu*(p - ax)\n"
        "eta = lr/(1 + lambd*lr*t)^alpha\n"
        "mu = 1/max(1, t - t0)\n"
    ),
    "cautious": (
        f"{ADAM}state m, v\n"
        "m = beta1*m + (1 - beta1)*g\n"
        "v = beta2*v + (1 - beta2)*g^2\n"
        "u = debias(m, beta1)/(sqrt(debias(v, beta2)) + eps)\n"
        "mask = u*g > 0\n"
        "p -= lr*u*mask/max(mean(mask), 1e-3)\n"
    ),
    "lamb": (
        f"{ADAM}hyper weight_decay = 0.01\n"
        "state m, v\n"
        "m = beta1*m + (1 - beta1)*g\n"
        "v = beta2*v + (1 - beta2)*g^2\n"
        "u = debias(m, beta1)/(sqrt(debias(v, beta2)) + eps) + weight_decay*p\n"
        "a = norm(p)\n"
        "b = norm(u)\n"
        "p -= lr*(a/b if a > 0 and b > 0 else 1)*u\n"
    ),
    "lars": (
        "hyper lr = 1e-3, momentum = 0.9, dampening = 0, weight_decay = 0, trust = 1e-3, nesterov = false\n"
        "state b\n"
        "if ndim > 1:\n"
        "    wn = norm(p)\n"
        "    d = norm(g) + weight_decay*wn\n"
        "    r = trust*wn/d if wn > 0 and d > 0 else 1\n"
        "    g = r*(g + weight_decay*p)\n"
        "b = momentum*b + (1 - dampening)*g\n"
        "p -= lr*(g + momentum*b if nesterov else b)\n"
    ),
    "lion": (
        "hyper lr = 1e-4 > 0, betas = (beta1 = 0.9, beta2 = 0.99) in [0, 1), weight_decay = 0 >= 0\n"
        "state m\n"
        "p *= 1 - lr*weight_decay\n"
        "p -= lr*sign(beta1*m + (1 - beta1)*g)\n"
        "m = beta2*m + (1 - beta2)*g\n"
    ),
    "mars": (
        "hyper lr = 3e-3, beta1 = 0.95, beta2 = 0.99, gamma = 0.025, eps = 1e-8\n"
        "state m, v, g0\n"
        "c = g + gamma*beta1/(1 - beta1)*(g - g0)\n"
        "c /= max(1, norm(c))\n"
        "m = beta1*m + (1 - beta1)*c\n"
        "v = beta2*v + (1 - beta2)*c^2\n"
        "p -= lr*debias(m, beta1)/(sqrt(v + 1e-15) + eps)*sqrt(1 - beta2^t)\n"
        "g0 = g\n"
    ),
    "nadam": (
        f"{ADAM}hyper momentum_decay = 4e-3 >= 0, weight_decay = 0 >= 0, decoupled = false\n"
        "state m, v\n"
        "state prod: scalar = 1\n"
        "def mu(k) = beta1*(1 - 0.5*0.96^(k*momentum_decay))\n"
        "if weight_decay:\n"
        "    if decoupled: p *= 1 - lr*weight_decay\n"
        "    else: g += weight_decay*p\n"
        "prod *= mu(t)\n"
        "m = beta1*m + (1 - beta1)*g\n"
        "v = beta2*v + (1 - beta2)*g^2\n"
        "d = sqrt(v/(1 - beta2^t)) + eps\n"
        "p -= lr*(1 - mu(t))/(1 - prod)*g/d\n"
        "p -= lr*mu(t + 1)/(1 - prod*mu(t + 1))*m/d\n"
    ),
    "proximal": "x = p - lr*g\np = sign(x)*max(abs(x) - lr*lam, 0)\n",
    "radam": (
        f"{ADAM}state m, v\n"
        "m = beta1*m + (1 - beta1)*g\n"
        "v = beta2*v + (1 - beta2)*g^2\n"
        "rho_inf = 2/(1 - beta2) - 1\n"
        "rho = rho_inf - 2*t*beta2^t/(1 - beta2^t)\n"
        "u = m/(1 - beta1^t)\n"
        "if rho > 5:\n"
        "    r = sqrt((rho - 4)*(rho - 2)*rho_inf/((rho_inf - 4)*(rho_inf - 2)*rho))\n"
        "    u = u*r*sqrt(1 - beta2^t)/(sqrt(v) + eps)\n"
        "p -= lr*u\n"
    ),
    "rmsprop": (
        "hyper lr = 1e-2, alpha = 0.99 in [0, 1], eps = 1e-8, momentum = 0 >= 0, centered = false\n"
        "state sq\n"
        "state b when momentum\n"
        "state avg when centered\n"
        "sq = alpha*sq + (1 - alpha)*g^2\n"
        "if centered:\n"
        "    avg = alpha*avg + (1 - alpha)*g\n"
        "    d = sqrt(sq - avg^2) + eps\n"
        "else:\n"
        "    d = sqrt(sq) + eps\n"
        "if momentum:\n"
        "    b = momentum*b + g/d\n"
        "    p -= lr*b\n"
        "else:\n"
        "    p -= lr*g/d\n"
    ),
    "rprop": (
        "hyper lr = 1e-2 > 0, eta_minus = 0.5, eta_plus = 1.2, step_min = 1e-6, step_max = 50\n"
        "state prev\n"
        "state size = lr\n"
        "s = sign(g*prev)\n"
        "size = clamp(size*where(s > 0, eta_plus, where(s < 0, eta_minus, 1)), step_min, step_max)\n"
        "g = where(s < 0, 0, g)\n"
        "p -= size*sign(g)\n"
        "prev = g\n"
    ),
    "schedule_free": (
        f"{ADAM}hyper warmup_steps = 0, r = 0, power = 2\n"
        "state z = p\n"
        "state v\n"
        "group state lr_max = -1, weight_sum = 0\n"
        "k = lr*(t/warmup_steps if t <= warmup_steps else 1)\n"
        "lr_max = max(lr_max, k)\n"
        "w = t^r*lr_max^power\n"
        "weight_sum += w\n"
        "c = w/weight_sum\n"
        "v = beta2*v + (1 - beta2)*g^2\n"
        "u = g/(sqrt(v/(1 - beta2^t)) + eps)\n"
        "p = lerp(p, z, c)\n"
        "p -= k*(1 - beta1*(1 - c))*u\n"
        "z -= k*u\n"
    ),
    "sgd": (
        "hyper lr = 1e-3 >= 0, momentum = 0 >= 0, dampening = 0, weight_decay = 0 >= 0\n"
        "hyper nesterov = false, maximize = false\n"
        "require not nesterov or (momentum > 0 and dampening == 0)\n"
        "state b when momentum\n"
        "if maximize: g = -g\n"
        "if weight_decay: g += weight_decay*p\n"
        "if momentum:\n"
        "    b = g if first else momentum*b + (1 - dampening)*g\n"
        "    g = g + momentum*b if nesterov else b\n"
        "p -= lr*g\n"
    ),
    "yogi": (
        f"{ADAM}hyper initial = 1e-6\n"
        "state m = initial, v = initial\n"
        "m = beta1*m + (1 - beta1)*g\n"
        "v -= (1 - beta2)*sign(v - g^2)*g^2\n"
        "p -= lr/(1 - beta1^t)*m/(sqrt(v)/sqrt(1 - beta2^t) + eps)\n"
    ),
}
