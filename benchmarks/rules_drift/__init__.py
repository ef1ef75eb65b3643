"""Which learning rules help a trained model whose data drifts, and which harm it.

    python -m benchmarks.rules_drift

A 64-128-10 network is trained on 700 of scikit-learn's digits. Then comes a stream of 1400 others:
turning from 0° to 60°, or with ever more pixels swapped, or as they were. Each window of samples is
answered first and then learnt from by the last layer. Every rule of the registry that changes a
layer's weights does that through the real ledger, without and with a gate (windows of 50, score
then learn, paired exact test); beside them stand SGD, river and scikit-learn on the same hidden
activities, and the network left alone. Figures are accuracies over the whole stream.

`streams` makes the data, `ways` lists what is compared, `observing` says what each rule is told,
`ledgered` and `peers` run a way, `report` shows what came out.
"""
