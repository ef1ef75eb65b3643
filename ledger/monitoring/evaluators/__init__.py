"""Evaluators that come with the ledger, and how one is named.

`KIND:ARGUMENT`, the kinds being those of `registry.KINDS` (`held-out:FILE`, `regression:FILE`,
`similarity:FILE`, `perplexity:FILE`, `command:PROGRAM ARGUMENTS`), a URL (`https://…`), an id that
an installed package brings (entry points in `weightledger.evaluators`), or `module:function`.

What is wrong with an argument is said when the evaluator is made, what is wrong with a state when
it is called. Each gives the scores of single items where there are any, so that two states are
compared item by item.
"""
