"""Every diagnostic code: its title, why it exists, and a smallest rule that gets it.

``optlang explain CODE`` prints a row, the docs page of diagnostics is generated from the table, and a test checks that
each example gets exactly its code.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What there is to say about one code.

    Attributes:
        code: ``E...`` for errors, ``W...`` for warnings. E1 syntax, E2 names, E3 kinds of values, E4 declarations,
            E5 limits, E8 targets, E9 not supported yet, W6 warnings.
        title: A few words.
        explanation: Why this is refused and what to do, in a short paragraph.
        example: A smallest rule that gets the code.
        instead: The same rule written well, if there is one.
    """

    code: str
    title: str
    explanation: str
    example: str
    instead: str | None = None


# E1 syntax, E5 limits ---------------------------------------------------------------------------------------

SYNTAX: tuple[Entry, ...] = (
    Entry(
        "E101",
        "unexpected text",
        (
            "At this place the language allows something else; the note beside the carets lists what. A rule "
            "consists of declarations (`optimizer`, `hyper`, `state`, `require`, `def`), assignments and "
            "`if` blocks, each on a line of its own or separated by `;`."
        ),
        "hypr lr = 1e-3\np -= lr*g\n",
        "hyper lr = 1e-3\np -= lr*g\n",
    ),
    Entry(
        "E102",
        "missing value",
        (
            "An operator, a bracket, a comma or a keyword waits for a value that does not come. A choice needs "
            "both of its values: `a if condition else b`."
        ),
        "v = beta*v +\np -= lr*v\n",
        "v = beta*v + g\np -= lr*v\n",
    ),
    Entry(
        "E103",
        "missing operator",
        (
            "Two values stand side by side with nothing between them. Products are written with `*`, also after "
            "a number and before a bracket: `2*lr`, `2*(lr + 1)`. What is declared on one line is separated by "
            "commas."
        ),
        "p -= 2lr*g\n",
        "p -= 2*lr*g\n",
    ),
    Entry(
        "E104",
        "brackets do not match",
        (
            "Every opening bracket needs its closing one, of the same shape. Inside brackets a statement may go "
            "on over several lines, so a bracket that is never closed swallows the lines below it."
        ),
        "p -= lr*(g + m\n",
        "m = beta*m + g\np -= lr*(g + m)\n",
    ),
    Entry(
        "E105",
        "text is not closed",
        (
            "A text in quotes begins and ends on one line, with the same kind of quote. Only the docstring at "
            'the top, in `"""`, may have several lines.'
        ),
        'hyper lr = 1e-3 "step size\np -= lr*g\n',
        'hyper lr = 1e-3 "step size"\np -= lr*g\n',
    ),
    Entry(
        "E106",
        "character without meaning",
        (
            "The character is part of no word or sign of the language. Formulas copied from papers carry "
            "typeset signs (a long minus, a cross for products, curly quotes), and text from web pages "
            "unusual blanks; logic is written `and`, `or`, `not`. Names may have letters of any alphabet."
        ),
        "p -= lr × g\n",
        "p -= lr * g\n",
    ),
    Entry(
        "E107",
        "`=` where values are compared",
        (
            "`=` gives a name a value, or an argument its name. A comparison is written `==`, and a condition "
            "assigns nothing."
        ),
        "if first = 1: g = 2*g\np -= lr*g\n",
        "if first: g = 2*g\np -= lr*g\n",
    ),
    Entry(
        "E108",
        "missing colon",
        (
            "The line that decides about a block ends with `:`. After it comes one statement on the same line, "
            "or an indented block."
        ),
        "if first\n    g = 2*g\np -= lr*g\n",
        "if first:\n    g = 2*g\np -= lr*g\n",
    ),
    Entry(
        "E109",
        "wrong indentation",
        (
            "Statements of one block begin in the same column; a deeper block begins only after a line that "
            "ends with `:`. Spaces and tabs may both be used, but not one for the other."
        ),
        "v = beta*v + g\n    p -= lr*v\n",
        "v = beta*v + g\np -= lr*v\n",
    ),
    Entry(
        "E110",
        "malformed declaration",
        (
            "A declaration has a fixed shape: `optimizer NAME`; `hyper NAME = DEFAULT RANGE`, with a range such "
            'as `>= 0`, `in [0, 1)` or `in {"l2", "decoupled"}`; `state NAME = INITIAL as KEY when CONDITION`; '
            '`require CONDITION "message"`; `def f(x, y = 1) = EXPRESSION`. Parts that are not needed are left '
            "out, the others keep their order."
        ),
        "hyper lr: float = 1e-3\np -= lr*g\n",
        "hyper lr = 1e-3\np -= lr*g\n",
    ),
    Entry(
        "E111",
        "a value alone",
        (
            "A line that only computes a value has no effect, because nothing keeps the value. A statement "
            "begins with the name it assigns."
        ),
        "p - lr*g\n",
        "p -= lr*g\n",
    ),
    Entry(
        "E112",
        "notation of another language",
        (
            "Rules look like Python, but they are formulas and not programs: there are no imports, loops "
            "without end, classes, exceptions or side effects, and only the operators `+ - * / % ^ ??`, the "
            "comparisons, and `and`, `or`, `not`."
        ),
        "import torch\np -= lr*g\n",
        "p -= lr*g\n",
    ),
    Entry(
        "E113",
        "not a name",
        (
            "Names are made of letters, digits and `_`, and begin with a letter. Words of the language "
            "(`if`, `else`, `and`, `or`, `not`, `in`, `inf`, `pi`, `true`, `false`, `none`, `def`, `return`) are no "
            "names; words of Python such as `lambda` are. Names that begin with `_` belong to the compiler, "
            "and a raised digit is not a power: write `g^2`."
        ),
        "v = beta*v + g²\np -= lr*g/(sqrt(v) + 1e-8)\n",
        "v = beta*v + g^2\np -= lr*g/(sqrt(v) + 1e-8)\n",
    ),
    Entry(
        "E114",
        "in the wrong place",
        (
            "Declarations hold for the whole rule and stand outside of blocks; a docstring stands first; "
            "`return` stands in a function, `else` right after the block of its `if`."
        ),
        "hyper lr = 1e-3, nesterov = false\nif nesterov:\n    state m\np -= lr*g\n",
        "hyper lr = 1e-3, beta = 0.9\nstate m when beta\nif beta:\n    m = beta*m + g\n    g = m\np -= lr*g\n",
    ),
    Entry(
        "E115",
        "malformed assignment",
        (
            "An assignment is a name, `=` or one of `+= -= *= /= ^=`, and a value. Several names on the left of "
            "`=` take the results of one function. Calls and keys of the param group cannot be assigned."
        ),
        "group.lr = 0.1\np -= group.lr*g\n",
        "rate = 0.1\np -= rate*g\n",
    ),
    Entry(
        "E501",
        "the rule is too large",
        (
            "A text may have 100,000 characters and 20,000 names, numbers and signs; brackets may be nested 50 "
            "deep, blocks 20 deep, and operations 100 deep (a sum of 100 terms is 100 deep). No published "
            "optimizer comes near; the limits keep a generated or damaged text from costing unbounded time."
        ),
        "p -= " + "(" * 51 + "g" + ")" * 51 + "\n",
        "p -= g\n",
    ),
    Entry(
        "E502",
        "number out of reach",
        (
            "Numbers are exact when a rule is read and float64 when it runs: an exponent beyond 400 or more "
            "than 400 digits can only be a slip. For a bound that is never reached write `inf`."
        ),
        "p -= 1e999*g\n",
        "p -= 1e-9*g\n",
    ),
    Entry(
        "E503",
        "name too long",
        "A name may have 200 characters.",
        "p -= " + "very_" * 50 + "small*g\n",
        "p -= small*g\n",
    ),
)

# E2 names, E3 kinds, E4 declarations ------------------------------------------------------------------------

SEMANTICS: tuple[Entry, ...] = (
    Entry(
        "E201",
        "unknown name",
        (
            "Once a rule declares anything (`optimizer`, `hyper` or `state`), every hyperparameter and "
            "every state must be declared, so that a misspelt name is an error and not a new "
            "hyperparameter. Correct the spelling, declare the name, or assign it before it is read."
        ),
        ("hyper lr = 1e-3, beta = 0.9\nstate m\nm = beta*m + (1 - bta)*g\np -= lr*m\n"),
        ("hyper lr = 1e-3, beta = 0.9\nstate m\nm = beta*m + (1 - beta)*g\np -= lr*m\n"),
    ),
    Entry(
        "E202",
        "unknown function",
        (
            "A rule can call the functions of the language and those it defines with `def`. There is "
            "nothing else to call: no Python, no torch."
        ),
        "p -= lr*sine(g)\n",
        "p -= lr*sin(g)\n",
    ),
    Entry(
        "E203",
        "no value yet",
        (
            "A name that is not a state has a value only after it has been assigned in the same step, on "
            "every path that leads to where it is read. To keep a value from the step before, declare the "
            "name as state."
        ),
        ("hyper lr = 1e-3, beta = 0.9\nif beta > 0.5: u = g\np -= lr*u\n"),
        ("hyper lr = 1e-3, beta = 0.9\nu = g if beta > 0.5 else 0.5*g\np -= lr*u\n"),
    ),
    Entry(
        "E204",
        "cannot be assigned",
        (
            "A rule assigns to `p`, to `g` (its own copy of the gradient), to states and to names of its "
            "own. Hyperparameters belong to the user and to schedulers, `t` and the facts of a tensor to "
            "the optimizer, and a function of the rule only computes a value."
        ),
        ("hyper lr = 1e-3, beta = 0.9\nlr = lr*beta\np -= lr*g\n"),
        ("hyper lr = 1e-3, beta = 0.9\nrate = lr*beta\np -= rate*g\n"),
    ),
    Entry(
        "E205",
        "declared twice",
        "Each name has one meaning in a rule. Remove one of the declarations, or rename it.",
        ("hyper lr = 1e-3, beta = 0.9, lr = 0.1\nstate b\nb = beta*b + g\np -= lr*b\n"),
        ("hyper lr = 1e-3, beta = 0.9\nstate b\nb = beta*b + g\np -= lr*b\n"),
    ),
    Entry(
        "E206",
        "name already taken",
        (
            "The names `p g t first loss group ndim numel rows cols` and the names of the elementary "
            "functions mean the same in every rule. Names of schedules and of proximal maps (`warmup`, "
            "`cosine`, ...) may be used for values."
        ),
        ("hyper lr = 1e-3, max = 1\np -= lr*clamp(g, -max, max)\n"),
        ("hyper lr = 1e-3, limit = 1\np -= lr*clamp(g, -limit, limit)\n"),
    ),
    Entry(
        "E207",
        "function and value confused",
        ("A function is called with brackets; a value is not. To multiply by a bracket, write the `*`: `lr*(a + b)`."),
        ("hyper lr = 1e-3\np -= lr(g + p)\n"),
        ("hyper lr = 1e-3\np -= lr*(g + p)\n"),
    ),
    Entry(
        "E208",
        "wrong arguments",
        (
            "The arguments of a call must match the parameters of the function: as many as it has, "
            "keywords spelt as it spells them, none given twice, positional ones first. The message shows "
            "the call."
        ),
        ("hyper lr = 1e-3, beta = 0.9\nstate m\nm = lerp(m, g)\np -= lr*m\n"),
        ("hyper lr = 1e-3, beta = 0.9\nstate m\nm = lerp(m, g, 1 - beta)\np -= lr*m\n"),
    ),
    Entry(
        "E209",
        "not a value",
        (
            "`group` alone and the name of a tuple of hyperparameters are not numbers. Use `group.NAME` "
            "for a key of the user's own in the parameter group, and the parts of the tuple by their "
            "names, or in turn: `for b in betas:`. The rule's own hyperparameters are read by name, without `group.`."
        ),
        ("hyper lr = 1e-3, betas = (beta1 = 0.9, beta2 = 0.99)\np -= lr*betas*beta1*beta2*g\n"),
        ("hyper lr = 1e-3, betas = (beta1 = 0.9, beta2 = 0.99)\np -= lr*beta1*beta2*g\n"),
    ),
    Entry(
        "E210",
        "local name in a function",
        (
            "A function sees its parameters, hyperparameters, states, `p`, `g`, `t` and the facts of the "
            "tensor, but not the names that the rule computes on the way. Pass such a value as an "
            "argument."
        ),
        ("u = g/2\ndef f(x) = x + u\np -= lr*f(g)\n"),
        ("u = g/2\ndef f(x, u) = x + u\np -= lr*f(g, u)\n"),
    ),
    Entry(
        "E211",
        "state that does not exist here",
        (
            "A state declared with `when` exists only in the variants where the condition holds. Read and "
            "assign it under the same condition."
        ),
        ("hyper lr = 1e-3, momentum = 0 >= 0\nstate b when momentum\nb = momentum*b + g\np -= lr*b\n"),
        (
            "hyper lr = 1e-3, momentum = 0 >= 0\n"
            "state b when momentum\n"
            "if momentum:\n"
            "    b = momentum*b + g\n"
            "p -= lr*(b if momentum else g)\n"
        ),
    ),
    Entry(
        "E212",
        "recursion",
        (
            "Functions are written out where they are called. A function that calls itself, directly or "
            "through others, would never end."
        ),
        ("def f(x) = x*f(x - 1)\np -= lr*f(g)\n"),
        ("def f(x) = x*abs(x)\np -= lr*f(g)\n"),
    ),
    Entry(
        "E213",
        "no `return` on some path",
        (
            "A function is used for its value, so every path through its body must end in `return`, and "
            "nothing can follow a `return`. A block that runs several times, or only in some steps, is not left by it."
        ),
        ("def f(x):\n    if norm(x) > 1: return x/norm(x)\np -= lr*f(g)\n"),
        ("def f(x):\n    if norm(x) > 1: return x/norm(x)\n    return x\np -= lr*f(g)\n"),
    ),
    Entry(
        "E214",
        "wrong number of results",
        (
            "The names on the left of `=` must be as many as the values on the right. Only a function "
            "that returns several values fills several names, and inside an expression a call must give "
            "one value. Of a function of the language with several results, one is picked by its name or number: "
            "`eigh(x).vectors`, `eigh(x)[1]`."
        ),
        ("def f(x):\n    return x, x^2\na = f(g)\np -= lr*a\n"),
        ("def f(x):\n    return x, x^2\na, b = f(g)\np -= lr*(a + b)\n"),
    ),
    Entry(
        "E215",
        "unknown rule",
        (
            "`route`, `use` and `inner` name a rule of the library as `optlang list` prints it, or a file, in quotes, "
            "beside the rule's own. It has to be a rule without mistakes and with an update of "
            "its own, not one that routes in turn."
        ),
        "optimizer Both\nroute Muno when ndim == 2\nroute AdamW otherwise\n",
        "optimizer Both\nroute Muon when ndim == 2\nroute AdamW otherwise\n",
    ),
    Entry(
        "E216",
        "transform out of place",
        (
            "A transform is written out as statements before the one that it stands in. Where a value is not always "
            "computed (in one side of a choice, behind `and`, in a condition after `elif`) or belongs to no statement "
            "(in a `def`, in a count or a period) there is no such place."
        ),
        ("hyper lr = 1e-3, smooth = true\nu = momentum(g, 0.9) if smooth else g\np -= lr*u\n"),
        ("hyper lr = 1e-3, smooth = true\nu = g\nif smooth: u = momentum(g, 0.9)\np -= lr*u\n"),
    ),
    Entry(
        "E217",
        "inner rule misused",
        (
            "An inner rule `B` has two uses: `B(p, g)` on a line of its own makes its step, on `p` or another name "
            "that may be assigned, and `B.direction(g)` is the step as a value, what would be added to `p`. A rule "
            "that only routes has no step. A rule that keeps numbers of the group or of the whole model is called for "
            "all tensors; and once in each step, if it reads the time. One that is not for all tensors (it has a "
            "`require`) is called under a condition that is a formula once its names and functions are expanded."
        ),
        ("inner B = SGD(lr = 0.1)\np += 0.5*B(p, g)\n"),
        ("inner B = SGD(lr = 0.1)\np += 0.5*B.direction(g)\n"),
    ),
    Entry(
        "E301",
        "value too large for the state",
        (
            "A state keeps the shape of its initial value: `: scalar` is one number for each tensor, "
            "`0*mean(g, dim=-1)` one for each row. A value with more elements does not fit. Reduce the "
            "value, or start the state from a value of the larger shape: `zeros(rows, rows)`."
        ),
        ("hyper lr = 1e-3, beta = 0.9\nstate c: scalar = 0\nc = lerp(c, g^2, 1 - beta)\np -= lr*g/(sqrt(c) + 1e-8)\n"),
        (
            "hyper lr = 1e-3, beta = 0.9\n"
            "state c: scalar = 0\n"
            "c = lerp(c, mean(g^2), 1 - beta)\n"
            "p -= lr*g/(sqrt(c) + 1e-8)\n"
        ),
    ),
    Entry(
        "E302",
        "group or shared state from one tensor",
        (
            "A group state is computed once for each parameter group and step, so it can depend on "
            "hyperparameters, `t` and other group states, but not on `p`, `g`, the state or the shape of "
            "a single tensor. A shared state is computed once for the whole optimizer: it can depend on sums "
            "over all tensors (`total`), not on a single group."
        ),
        ("hyper lr = 1e-3\ngroup state peak = 0\npeak = max(peak, norm(g))\np -= lr*g/(peak + 1)\n"),
        ("hyper lr = 1e-3\nstate peak: scalar = 0\npeak = max(peak, norm(g))\np -= lr*g/(peak + 1)\n"),
    ),
    Entry(
        "E303",
        "state under a condition of the step",
        (
            "Whether a state exists is decided when its tensor is first met, from hyperparameters and the "
            "tensor's shape, or from a name of the rule that is computed from these alone. Steps, gradients and "
            "the like come too late for that."
        ),
        ("hyper lr = 1e-3\nstate b when t > 10\nif t > 10: b += g\np -= lr*g\n"),
        ("hyper lr = 1e-3\nstate b\nif t > 10: b += g\np -= lr*b\n"),
    ),
    Entry(
        "E304",
        "not a number",
        (
            'Strings and none are options, not numbers. They are compared (`mode == "l2"`, `x == none`), '
            "and `x ?? 0` gives a number where `x` is none; there is no arithmetic on them."
        ),
        ('hyper lr = 1e-3, mode = "l2"\np -= lr*mode*g\n'),
        ('hyper lr = 1e-3, mode = "l2"\np -= lr*g*(2 if mode == "l2" else 1)\n'),
    ),
    Entry(
        "E305",
        "condition misused",
        (
            "A condition is a comparison, `true`, `false`, a number (0 does not hold) or several of them "
            "joined by `and`, `or`, `not`. A string is none, and comparing a comparison or taking its "
            "root is usually a misplaced bracket."
        ),
        "p -= lr*sqrt(g > 0)\n",
        "p -= lr*g*(sqrt(abs(g)) > 1)\n",
    ),
    Entry(
        "E306",
        "comparison that cannot hold",
        (
            "Strings are compared with strings, by `==` and `!=`; only a hyperparameter whose default is "
            "none can be none."
        ),
        ("hyper lr = 1e-3\nif lr == none: g = 2*g\np -= lr*g\n"),
        ("hyper lr = none\nrate = lr ?? 1e-3\np -= rate*g\n"),
    ),
    Entry(
        "E307",
        "not one of the choices",
        (
            "The hyperparameter is declared with a list of strings, and this string is not in it, so the "
            "comparison never holds."
        ),
        ('hyper lr = 1e-3, mode = "l2" in {"l2", "decoupled"}\nif mode == "L2": g += p\np -= lr*g\n'),
        ('hyper lr = 1e-3, mode = "l2" in {"l2", "decoupled"}\nif mode == "l2": g += p\np -= lr*g\n'),
    ),
    Entry(
        "E308",
        "may be none",
        (
            "The default of this hyperparameter is none, and this place is reached while it is. Say what "
            "to use instead with `??`, or ask for none first."
        ),
        ("hyper lr = 1e-3, clip = none\np -= lr*min(clip, 1)*g\n"),
        ("hyper lr = 1e-3, clip = none\np -= lr*min(clip ?? 1, 1)*g\n"),
    ),
    Entry(
        "E309",
        "`dim` misused",
        (
            "`dim=` says which dimensions a reduction (`sum mean norm rms dot var std max min`) sums "
            "over, which stay with size 1, or of what parts a projection or a proximal map is. It is a whole "
            "number written out, or several in brackets, all counted from the front or all from the back. The "
            "dimension of `flip`, `cumsum`, `sort` and `argsort` is written out too."
        ),
        "p -= lr*g/(1 + mean(g^2, dim=ndim))\n",
        "p -= lr*g/(1 + mean(g^2, dim=-1))\n",
    ),
    Entry(
        "E310",
        "nothing to reduce",
        (
            "A reduction turns a tensor into fewer numbers. What it is applied to here is one number already. `total` "
            "sums over all tensors, so what it sums must differ from tensor to tensor; `rows` and `cols` are sizes of "
            "tensors."
        ),
        "p -= lr*g/(1 + norm(lr))\n",
        "p -= lr*g/(1 + norm(g))\n",
    ),
    Entry(
        "E311",
        "requirement on a step",
        (
            "A `require` is checked when the optimizer is made and when a hyperparameter is changed; one that reads "
            "`ndim`, `numel`, `rows` or `cols`, for each parameter. It can compare these and compute with them, but "
            "not look into tensors, at steps, or call functions of the rule."
        ),
        ("hyper lr = 1e-3\nrequire norm(g) < 10\np -= lr*g\n"),
        ("hyper lr = 1e-3\nrequire lr < 10\np -= lr*g\n"),
    ),
    Entry(
        "E312",
        "initial value not known yet",
        (
            "The initial value of a state is computed before the statements of the first step, from "
            "hyperparameters, the shape of the tensor, its first `p` and `g`, and names that the rule computes from "
            "hyperparameters and the shape alone; that of a group or shared state from hyperparameters. The same "
            "holds for defaults of function parameters."
        ),
        ("hyper lr = 1e-3\nu = 2*g\nstate b = u\nb += u\np -= lr*b\n"),
        ("hyper lr = 1e-3\nstate b = 2*g\nb += 2*g\np -= lr*b\n"),
    ),
    Entry(
        "E313",
        "shapes that do not fit",
        (
            "Element by element, two tensors meet if they have the same shape, or sizes of 1 where they differ; "
            "`x @ y` needs as many columns of x as y has rows; `eigh`, `inv_root` and others take square matrices. The "
            "rule is tried out with parameters of several shapes, and the message names the one it fails for."
        ),
        ("hyper lr = 1e-3\nrequire ndim == 2\nstate L = zeros(rows, rows)\nL += g @ g\np -= lr*(inv_root(L, 4) @ g)\n"),
        (
            "hyper lr = 1e-3\nrequire ndim == 2\nstate L = zeros(rows, rows)\n"
            "L += g @ g.T\np -= lr*(inv_root(L, 4) @ g)\n"
        ),
    ),
    Entry(
        "E314",
        "size or count not known in advance",
        (
            "Sizes (`zeros(rows, r)`, `x[:r, :]`), the number of repeats and the period of `every` are known before "
            "the first step: they are computed from numbers, hyperparameters and the shape of the tensor. Between the "
            "brackets of an index there may also be an order such as `argsort(v)`."
        ),
        ("hyper lr = 1e-3\nrepeat t: g /= 2\np -= lr*g\n"),
        ("hyper lr = 1e-3, halvings = 3\nrepeat halvings: g /= 2\np -= lr*g\n"),
    ),
    Entry(
        "E315",
        "`on` block that needs a step",
        (
            "`on eval` and `on train` run when `optimizer.eval()` or `.train()` is called, between the steps: there is "
            "no gradient and no count, and nothing to sum over all tensors. They change `p` and the states of each "
            "tensor."
        ),
        ("hyper lr = 1e-3\nstate z = p\non eval: p = z - lr*g\non train: p = z\nz = (z + p)/2\np -= lr*g\n"),
        ("hyper lr = 1e-3\nstate z = p\non eval: p = (z + p)/2\non train: p = 2*p - z\nz -= lr*g\np = (z + p)/2\n"),
    ),
    Entry(
        "E316",
        "history used as something else",
        (
            "`push s <- x` and `count(s)` are about a history, declared as `history s: size k`. In `for i in s:`, i is "
            "the place of an entry and only stands in brackets, as in `s[i]`. Nothing in the loop may be about the "
            "whole model, draw random numbers or change the history. A `flat` rule, whose p is a vector of all "
            "parameters, has no `on` blocks. A rule has one `iterate`."
        ),
        ("hyper lr = 1e-3\nstate m\npush m <- g\nm = 0.9*m + g\np -= lr*m\n"),
        ("hyper lr = 1e-3\nhistory m: size 3\npush m <- g\np -= lr*mean(m, dim=0)[0]\n"),
    ),
    Entry(
        "E401",
        "empty rule",
        "A rule needs at least one statement that changes the parameter.",
        "# nothing\n",
        "p -= lr*g\n",
    ),
    Entry(
        "E402",
        "`p` never changes",
        (
            "An optimizer exists to change the parameter, which is called `p` in every rule; a rule that "
            "assigns to other names only does nothing."
        ),
        "theta -= lr*g\n",
        "p -= lr*g\n",
    ),
    Entry(
        "E403",
        "default not constant",
        (
            "A default is a number (arithmetic on numbers is allowed), a string, `true`, `false` or `none`. It may be "
            "computed from numbers that have defaults and are declared before it. To follow another hyperparameter "
            "in every step, make it `none` and fill it in with `??`."
        ),
        ("hyper lr, scale = 2*lr\np -= scale*lr*g\n"),
        ("hyper lr, scale = none\np -= (scale ?? 2*lr)*lr*g\n"),
    ),
    Entry(
        "E404",
        "default out of range",
        ("A hyperparameter's default must itself satisfy the range it declares, or nobody could use the default."),
        ("hyper lr = 1e-3 > 1\np -= lr*g\n"),
        ("hyper lr = 1e-3 > 0\np -= lr*g\n"),
    ),
    Entry(
        "E405",
        "range that makes no sense",
        (
            "A range of numbers has constant ends, the smaller one first; a list of choices holds all "
            "strings or all numbers; and both must suit the default. Conditions between hyperparameters "
            "are written with `require`."
        ),
        ("hyper lr = 1e-3 in (1, 0)\np -= lr*g\n"),
        ("hyper lr = 1e-3 in (0, 1)\np -= lr*g\n"),
    ),
    Entry(
        "E406",
        "bad name of the optimizer",
        (
            "`optimizer NAME` names the Python class, so NAME must be an identifier and no keyword, and a "
            "file holds one rule."
        ),
        ("optimizer class\nhyper lr = 1e-3\np -= lr*g\n"),
        ("optimizer Class\nhyper lr = 1e-3\np -= lr*g\n"),
    ),
    Entry(
        "E407",
        "key already in use",
        (
            "A hyperparameter is a keyword argument of the class and a key of the parameter group. Some "
            "of these belong to torch (`params`, `fused`, ...), and two names must not become the same in "
            "Python, where `lambda` is spelt `lambda_`."
        ),
        ("hyper lr = 1e-3, fused = 2\np -= lr*fused*g\n"),
        ("hyper lr = 1e-3, factor = 2\np -= lr*factor*g\n"),
    ),
    Entry(
        "E408",
        "tuple with some defaults",
        ("A tuple of hyperparameters is passed as a whole, so either all of its parts have defaults or none has."),
        ("hyper lr = 1e-3, betas = (beta1, beta2 = 0.9)\np -= lr*beta1*beta2*g\n"),
        ("hyper lr = 1e-3, betas = (beta1 = 0.9, beta2 = 0.9)\np -= lr*beta1*beta2*g\n"),
    ),
    Entry(
        "E409",
        "state key already in use",
        (
            "States are kept in `state_dict` under their name or the key given by `as`; keys must differ. "
            "The key `step` holds the count of steps: the rule's own counter (`state step: scalar = 0`) "
            "or, if the rule reads `t`, the compiler's."
        ),
        ("hyper lr = 1e-3\nstate a as x, b as x\na += g\nb += a\np -= lr*b\n"),
        ("hyper lr = 1e-3\nstate a as x, b as y\na += g\nb += a\np -= lr*b\n"),
    ),
    Entry(
        "E410",
        "defaults break a requirement",
        ("The defaults must meet every `require` of the rule, or the optimizer could not be made without arguments."),
        ("hyper lr = 1e-3, low = 2, high = 1\nrequire low < high\np -= lr*clamp(g, low, high)\n"),
        ("hyper lr = 1e-3, low = 1, high = 2\nrequire low < high\np -= lr*clamp(g, low, high)\n"),
    ),
    Entry(
        "E411",
        "`on eval` and `on train` not in a pair",
        (
            "The two undo each other: `optimizer.eval()` leads to the weights that are evaluated, `.train()` back to "
            "those that are trained. A rule has one block of each, or none."
        ),
        ("hyper lr = 1e-3\nstate z = p\non eval: p = z\nz = (z + p)/2\np -= lr*g\n"),
        ("hyper lr = 1e-3\nstate z = p\non eval: p = (z + p)/2\non train: p = 2*p - z\nz -= lr*g\np = (z + p)/2\n"),
    ),
    Entry(
        "E412",
        "misplaced route",
        (
            "A rule that routes has a name and routes, nothing else: each tensor is updated by the rule that the first "
            "matching route leads to. A route looks at the shape of the tensor and at keys of its parameter group. "
            "`otherwise` is the last one."
        ),
        "optimizer Both\nroute AdamW otherwise\nroute SGD when ndim < 2\n",
        "optimizer Both\nroute SGD when ndim < 2\nroute AdamW otherwise\n",
    ),
    Entry(
        "E413",
        "no such format",
        (
            "`store m: FORMAT` says how a state is kept. The formats are `fp32`, `bf16`, `bf16 stochastic` and `fp16`, "
            "and `fp8`, `int8`, `log8`, `softsign8` and `sqrt8`, which may have the size of a block in brackets: "
            "`fp8(block = 128)`. "
            "For the parameter `p`, which stays in the type that the model has it in, it says how bfloat16 is rounded: "
            "`stochastic`, `kahan`, `bf16+8` or `bf16+16`. A condition after `when` is about the shape of the tensor."
        ),
        "hyper lr = 1e-3\nstate m\nstore m: fp9\nm = 0.9*m + 0.1*g\np -= lr*m\n",
        "hyper lr = 1e-3\nstate m\nstore m: fp8\nm = 0.9*m + 0.1*g\np -= lr*m\n",
    ),
    Entry(
        "E414",
        "nothing that has a format",
        (
            "Formats are for states that are shaped like the parameter. Numbers, what is reduced along dimensions, "
            "matrices and histories stay as they are. So do all states of rules that are `flat` or `sparse`."
        ),
        "hyper lr = 1e-3\nstate m, s: scalar\nstore s: bf16\ns = norm(g)\nm = 0.9*m + 0.1*g\np -= lr*m/(s + 1)\n",
        "hyper lr = 1e-3\nstate m, s: scalar\nstore m: bf16\ns = norm(g)\nm = 0.9*m + 0.1*g\np -= lr*m/(s + 1)\n",
    ),
    Entry(
        "E415",
        "format without a sign",
        (
            "`log8` keeps numbers that are never negative. The rule was run on a few numbers with its defaults, and "
            "the state became negative."
        ),
        "hyper lr = 1e-3\nstate m\nstore m: log8\nm = 0.9*m + 0.1*g\np -= lr*m\n",
        "hyper lr = 1e-3\nstate m\nstore m: fp8\nm = 0.9*m + 0.1*g\np -= lr*m\n",
    ),
    Entry(
        "E510",
        "constant too large",
        (
            "Arithmetic on constants is exact, so a power of numbers can have more digits than any "
            "memory. `x^y^z` means `x^(y^z)`."
        ),
        "p -= 9^9^9^9*lr*g\n",
        "p -= 9^9*lr*g\n",
    ),
    Entry(
        "E511",
        "rule too large",
        (
            "Functions are written out where they are called. Functions that call others several times, "
            "several levels deep, grow beyond any reasonable size or nest too deep; so do hundreds of "
            "functions or of branches. The body of `repeat` is written out each time."
        ),
        (
            "def f0(x) = x/(1 + abs(x))\n"
            "def f1(x) = f0(x) + f0(2*x)\n"
            "def f2(x) = f1(x) + f1(2*x)\n"
            "def f3(x) = f2(x) + f2(2*x)\n"
            "def f4(x) = f3(x) + f3(2*x)\n"
            "def f5(x) = f4(x) + f4(2*x)\n"
            "def f6(x) = f5(x) + f5(2*x)\n"
            "def f7(x) = f6(x) + f6(2*x)\n"
            "def f8(x) = f7(x) + f7(2*x)\n"
            "def f9(x) = f8(x) + f8(2*x)\n"
            "def f10(x) = f9(x) + f9(2*x)\n"
            "def f11(x) = f10(x) + f10(2*x)\n"
            "def f12(x) = f11(x) + f11(2*x)\n"
            "def f13(x) = f12(x) + f12(2*x)\n"
            "p -= lr*f13(g)\n"
        ),
        ("def f0(x) = x/(1 + abs(x))\np -= lr*f0(f0(g))\n"),
    ),
)

# E8 targets, E9 not supported yet, W6 warnings ---------------------------------------------------------------

OTHERS: tuple[Entry, ...] = (
    Entry(
        "E801",
        "cannot be carried by a target",
        (
            "`optlang emit --target` writes a rule as a file that is used without this package, and such a file cannot "
            "hold everything that the language can say. The help line says what to do instead. `optlang check` finds "
            "nothing, as the rule itself is fine."
        ),
        ("hyper lr = 1e-3\np -= lr*g/(gnorm(g) + 1e-6)\n"),
    ),
    Entry(
        "E802",
        "not for tensors of these dimensions",
        (
            "`optlang emit` shows a rule as it is for a tensor of some dimensions, two unless `--ndim` says "
            "otherwise, and the rule is not for such tensors. `optlang check` finds nothing, as the rule is fine."
        ),
        ("hyper lr = 1e-3\nrequire ndim == 3\np -= lr*g\n"),
    ),
    Entry(
        "E901",
        "not supported yet",
        (
            "The language knows this construct, this version of the compiler does not. The language guide "
            "lists what is compiled today, and the help line says what to write instead where there is "
            "something."
        ),
        ("hyper lr = 1e-3\ninput x\np -= lr*g\n"),
    ),
    Entry(
        "W601",
        "state never read",
        (
            "The state takes memory and is kept in checkpoints, but nothing depends on it. Often the "
            "update reads another name than was meant."
        ),
        ("hyper lr = 1e-3\nstate m\nm = g\np -= lr*g\n"),
        ("hyper lr = 1e-3\nstate m\nm = 0.9*m + g\np -= lr*m\n"),
    ),
    Entry(
        "W602",
        "hyperparameter never used",
        "Passing another value changes nothing. Often the formula reads another name than was meant.",
        ("hyper lr = 1e-3, beta = 0.9\np -= lr*g\n"),
        ("hyper lr = 1e-3\np -= lr*g\n"),
    ),
    Entry(
        "W603",
        "value never used",
        (
            "A name is assigned and then never read in the same step. If it is to last until the next "
            "step, declare it as state."
        ),
        ("u = 2*g\np -= lr*g\n"),
        ("u = 2*g\np -= lr*u\n"),
    ),
    Entry(
        "W604",
        "function never called",
        "A `def` that nothing calls has no effect.",
        ("def f(x) = 2*x\np -= lr*g\n"),
        ("def f(x) = 2*x\np -= lr*f(g)\n"),
    ),
    Entry(
        "W605",
        "state never assigned",
        (
            "The state keeps its initial value for ever (0, if none is given). Often the assignment is to "
            "a misspelt name."
        ),
        ("hyper lr = 1e-3\nstate m\np -= lr*(g + m)\n"),
        ("hyper lr = 1e-3\nstate m\nm = 0.9*m + g\np -= lr*m\n"),
    ),
    Entry(
        "W606",
        "arithmetic that breaks down on the first step",
        (
            "The rule was run for one step on a few numbers with its defaults, and here it divided by 0 "
            "or took the root or logarithm of a number that has none. States start at 0 unless they say "
            "otherwise, and gradients can be exactly 0."
        ),
        "p -= lr*g/abs(g)\n",
        "p -= lr*g/(abs(g) + 1e-8)\n",
    ),
    Entry(
        "W607",
        "going up",
        (
            "The rule was run for two steps on a few numbers with its defaults, and the parameter moved "
            "along its gradient, which makes the loss larger. To minimise, subtract."
        ),
        "p += lr*g\n",
        "p -= lr*g\n",
    ),
    Entry(
        "W608",
        "eps added twice",
        (
            "Papers add the small constant either under the root or outside it; adding it in both places "
            "is usually a slip."
        ),
        ("v = beta*v + g^2\np -= lr*g/(sqrt(v + eps) + eps)\n"),
        ("v = beta*v + g^2\np -= lr*g/(sqrt(v) + eps)\n"),
    ),
    Entry(
        "W609",
        "`??` without effect",
        ("`a ?? b` is `b` only where `a` is none, and only a hyperparameter whose default is none can be none."),
        ("hyper lr = 1e-3\np -= (lr ?? 0.1)*g\n"),
        ("hyper lr = none\np -= (lr ?? 0.1)*g\n"),
    ),
    Entry(
        "W610",
        "gradient never used",
        "Every parameter moves the same way whatever the loss does.",
        "p *= 1 - lr\n",
        ("p *= 1 - lr\np -= lr*g\n"),
    ),
    Entry(
        "W611",
        "parameter replaced",
        "A step changes the parameter a little; here it gets a value in which the old one does not occur. "
        "`p =- lr*g` is `p = -lr*g`, not `p -= lr*g`.",
        "p =- lr*g\n",
        "p -= lr*g\n",
    ),
    Entry(
        "W612",
        "for some shapes only",
        (
            "The rule works on matrices, and for parameters with other numbers of dimensions the shapes do not fit: "
            "giving it such a parameter will be an error. A `require` says so to its users; `route` sends the other "
            "parameters to another rule."
        ),
        "hyper lr = 1e-3\nstate L = zeros(rows, rows)\nL += g @ g.T\np -= lr*(inv_root(L, 4) @ g)\n",
        "hyper lr = 1e-3\nrequire ndim == 2\nstate L = zeros(rows, rows)\nL += g @ g.T\np -= lr*(inv_root(L, 4) @ g)\n",
    ),
    Entry(
        "W613",
        "a small number that becomes 0",
        (
            "Formats with one scale for many neighbours round small numbers beside large ones to 0, and `fp16` "
            "whatever is very small. The rule was run for 30 steps with every other number of this state rounded to 0 "
            "after each step, and an update became many times as long: it is divided by the state, for example. `log8` "
            "keeps everything that is not 0 apart from 0, and so does `bf16`."
        ),
        "hyper lr = 1e-3\nstate m, v\nstore v: int8\nm = 0.9*m + 0.1*g\nv = 0.9*v + 0.1*g^2\n"
        "p -= lr*m/(sqrt(v) + 1e-8)\n",
        "hyper lr = 1e-3\nstate m, v\nstore v: log8\nm = 0.9*m + 0.1*g\nv = 0.9*v + 0.1*g^2\n"
        "p -= lr*m/(sqrt(v) + 1e-8)\n",
    ),
    Entry(
        "W614",
        "an average that stands still",
        (
            "An average moves by 1 - beta of the way in each step. Where that is less than half the distance of two "
            "codes, rounding to the nearest takes it back: with beta = 0.999, an average of squares in bfloat16 is 30% "
            "too large, and never comes down when gradients become smaller. Averages of what has both signs are moved "
            "by the noise of gradients, unless they are very slow. `log8` and `bf16 stochastic` round up or down at "
            "random, in proportion, which is right on average."
        ),
        "hyper lr = 1e-3, beta = 0.999\nstate v\nstore v: bf16\nv = beta*v + (1 - beta)*g^2\n"
        "p -= lr*g/(sqrt(v) + 1e-8)\n",
        "hyper lr = 1e-3, beta = 0.999\nstate v\nstore v: bf16 stochastic\nv = beta*v + (1 - beta)*g^2\n"
        "p -= lr*g/(sqrt(v) + 1e-8)\n",
    ),
)

CATALOGUE: dict[str, Entry] = {entry.code: entry for entry in (*SYNTAX, *SEMANTICS, *OTHERS)}
