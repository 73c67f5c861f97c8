"""What a mutation changes: one operator, constant, flag or returned value of a file, on its syntax tree."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
OPPOSITES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutation:
    """One change of one file: `before` becomes `after`; `source` is the whole file after it, `function` where it is."""

    file: str
    line: int
    function: str  # the outermost function's qualified name; "" in the body of a module or class
    before: str
    after: str
    source: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What `EQUIVALENT` names it by."""
        return self.file, self.function, self.before, self.after

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  ->  {self.after}  ({self.function or 'module'})"


def _alternatives(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that may stand in `node`'s place."""
    match node:
        case ast.Compare(ops=[op], left=left, comparators=right):
            for other in COMPARISONS[type(op)]:
                yield ast.Compare(left, [other()], right)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in ARITHMETIC:
            yield ast.AugAssign(target, ARITHMETIC[type(op)](), value)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in OPPOSITES:
            yield ast.Call(ast.Name(OPPOSITES[name], ast.Load()), args, keywords)
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=args, keywords=keywords) if name in OPPOSITES:
            yield ast.Call(ast.Attribute(value, OPPOSITES[name], ast.Load()), args, keywords)
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))


DEFENSIVE = {"strict", "check_finite", "overwrite_a", "overwrite_b"}  # flags of calls that no result depends on
SKIPPED = (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom)  # words for a reader, not what is computed
NOT_COMPUTED = {"annotation", "returns", "decorator_list", "type_params"}
FREE = {"reshape", "view"}  # calls to which -1 is the size that is left, and every other negative number too
SEEDS = {"seed", "random_seed"}  # whose defaults are as good as any other


def _is_free(node: ast.AST, field: str, index: int | None, child: ast.AST) -> bool:
    """Whether nothing depends on which value `child`, in this field of `node`, has."""
    match node, child:
        case _, ast.keyword(arg=name):
            return name in DEFENSIVE
        case ast.Call(func=ast.Attribute(attr=name)), ast.UnaryOp(op=ast.USub()):
            return name in FREE
        case ast.arguments(args=args, defaults=defaults), _ if field == "defaults" and index is not None:
            return args[len(args) - len(defaults) + index].arg in SEEDS
    return False


def _places(node: ast.AST, path: tuple = (), function: str = "") -> Iterator[tuple[ast.AST, tuple, str]]:
    """Every node below that computes something, by its path of fields, with the function around it."""
    for field, value in ast.iter_fields(node):
        if field in NOT_COMPUTED:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, SKIPPED):
                continue
            if _is_free(node, field, index, child):
                continue
            inside = function
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and not function.endswith("()"):
                inside = f"{function}{child.name}" + ("()" if isinstance(child, ast.FunctionDef) else ".")
            here = (*path, (field, index))
            yield child, here, inside
            yield from _places(child, here, inside)


def _at(tree: ast.AST, path: tuple) -> ast.AST:
    for field, index in path:
        tree = getattr(tree, field) if index is None else getattr(tree, field)[index]
    return tree


def _replaced(tree: ast.Module, path: tuple, node: ast.AST) -> ast.Module:
    """A copy of the tree with another node at a path."""
    changed = copy.deepcopy(tree)
    *parents, (field, index) = path
    parent = _at(changed, tuple(parents))
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node
    return ast.fix_missing_locations(changed)


def candidates(root: Path, file: str) -> list[tuple]:
    """What could be changed in a file: (file, path in the tree, which alternative), cheap to list."""
    tree = ast.parse((root / file).read_text())
    return [(file, path, number) for node, path, _ in _places(tree) for number, _ in enumerate(_alternatives(node))]


SHORTEST = 16  # characters; of less, what stands around it is shown


def mutation(root: Path, file: str, path: tuple, number: int) -> Mutation:
    """One of the `candidates`, carried out."""
    tree = ast.parse((root / file).read_text())
    node, function = next((node, function) for node, where, function in _places(tree) if where == path)
    changed = _replaced(tree, path, list(_alternatives(node))[number])
    shown = path
    while (
        len(shown) > 1 and len(ast.unparse(_at(tree, shown))) < SHORTEST and not isinstance(_at(tree, shown), ast.stmt)
    ):
        shown = shown[:-1]
    before, after = (" ".join(ast.unparse(_at(each, shown)).split())[:160] for each in (tree, changed))
    name = function.removesuffix("()") if function.endswith("()") else ""
    return Mutation(file, node.lineno, name, before, after, ast.unparse(changed))
