"""Help texts: what each number means, its formula, and whether higher or lower is better."""

__all__ = ["FORMULAS"]

FORMULAS = {
    # Importance
    "fidelity": "Higher is better; 1 is perfect. **Subset fidelity** (Def. 3.1): the share of a layer's output "
    "energy that a set of components reconstructs, $FS(S) = 1 - \\min_\\delta E\\|Y - \\sum_{i \\in S} \\delta_i "
    "A_i\\|^2 / E\\|Y\\|^2$, weighted by energy over outputs and consumers.",
    "singleton": "Higher means more important. Fidelity of a single component: the squared cosine between its "
    "contribution and the whole output, $E\\langle A_i, Y\\rangle^2 / (E\\|A_i\\|^2 \\, E\\|Y\\|^2)$.",
    "class": "Higher means that the component carries more of the class. Fidelity of a single component on the "
    "images that the network assigns to class $c$, with one factor $\\delta$ for each layer that reads the group: "
    "$1 - \\min_\\delta E_c\\|Y - \\delta A_i\\|^2 / E_c\\|Y\\|^2 = E_c\\langle A_i, Y\\rangle^2 / (E_c\\|A_i\\|^2 "
    "\\, E_c\\|Y\\|^2)$.",
    "exemplars": "The images with the largest mean squared activation of the component at the first layer that "
    "reads it, and the pixels responsible for it: integrated gradients, starting from an image of the mean colour, "
    "with absolute values summed over colours.",
    "output": "Higher means that the component carries more of the output. Singleton fidelity for each output of "
    "the layer, before outputs are weighted by their energy.",
    "eta": "A set of components whose fidelity reaches η is a **HiFi set** (Def. 3.4). The orange mark shows the "
    "size of the smallest one in the greedy order; lower means that more can be removed.",
    "compensation": "How the remaining components compensate for the removed ones. **None**: not at all. "
    "**Scalar**: one factor per (output, component) pair, $\\delta^* = G_{SS}^+ b_S$. **Full**: new weights by "
    "least squares, $W' = W H_{:,S} H_{SS}^+$. **Sequential**: the same, one layer after the other, each fitted to "
    "the inputs that it gets from the modified layers before it; predictions are those of full compensation.",
    "order": "**Greedy** removes components one at a time, always the one that costs the least given those that "
    "remain. **Naive** ranks by singleton fidelity, which is optimal only if contributions are uncorrelated (Thm. "
    "3.9).",
    # Bounds
    "gain": "Lower means less sensitive. How much an error in this layer's output can grow on its way to the "
    "logits: $K = \\max_x \\|h(z + e) - h(z)\\| / \\|e\\|$ over the samples, with parallel paths held fixed. "
    "**Directional**: $e$ as an edit causes it. **Jacobian**: the operator norm at each sample. **Random**: $e$ in "
    "random directions. **Pairs**: one sample's activation replaced by another's. These four come from samples, so "
    "they are **lower bounds** of the true constant. **Operator norms** give an upper bound.",
    "convergence": "Flat at the right end: more samples are unlikely to change the estimate. Blue: the expected "
    "largest gain among n of the samples, and the central 90% over all ways to draw them (exact). Orange: the "
    "root-mean-square gain, with its 90% confidence band for n samples.",
    "slack": "Lower is better; 1× is perfect. The layers are replaced from last to first: one at a time, or all of "
    "a block or stage together. Tightness is a product of two factors. **Worst-case gain**: the largest gain stands "
    "for every sample, although most have a smaller one. **Summation**: errors are added although they partly "
    "cancel. Errors cancel most where layers compensate for each other, as sequential compensation makes them do.",
    "norms": "Higher is safer: LayerNorm divides by $\\sqrt{\\mathrm{var} + \\varepsilon}$, so it can magnify an "
    "error by up to $\\max|\\gamma|$ over the smallest such norm. Without a lower limit on the norm, LayerNorm has "
    "no finite constant.",
    "bound": "Lower is better. Predicted limit on the RMS error of the logits (Thm. 3.6): $\\sum_l K_l "
    "\\sqrt{E\\|Y_l - \\hat Y_l\\|^2}$. The $K_l$ are estimated on samples of the original network, so the bound "
    "itself is an estimate.",
    "tightness": "Tightness is the bound divided by the measured error. Lower is better: 1× is perfect, 10× means "
    "that the bound is ten times the error.",
    # Cost
    "flops": "Lower is cheaper. Multiply-accumulates for one sample, each counted once.",
    "params": "Lower is cheaper. Weights, biases and normalisation parameters.",
    "table_ms": "Lower is faster. Predicted time of one forward pass on this machine: each layer at its new widths, "
    "taken from a table of timings at several widths (multiples of eight channels apart from odd numbers), plus the "
    "rest of the network. *Time the layers*, under *Score and widths*, creates the table.",
    "sensitivity": "Lower means that the group can be cut further. Estimated RMS error of the logits, $\\sum_l K_l "
    "\\sqrt{e_l}$ over the layers that read the group, if only this group is cut. Coupled layers are one group.",
    "latency_ms": "Lower is faster. Median time of one forward pass of one sample on this machine. The original and "
    "the modified network are timed in turns; the spread is the interquartile range of the rounds. A change no "
    "larger than the spread counts as noise.",
    "relative_latency": "Lower is faster. Latency as a percentage of the original network's, timed in turns in the "
    "same run: the only latency that can be compared between rows.",
    "latency_spread": "Uncertainty of the relative latency in percentage points: the interquartile ranges of both "
    "networks' rounds, combined. Smaller differences are noise.",
    "timed": "When the row was timed. Milliseconds from different times also differ by the load of the machine.",
    "accuracy": "Higher is better. Share of test images whose predicted class is the label.",
    "agreement": "Higher is better. Share of test images (text: tokens) for which the modified network gives the same "
    "first answer as the original one. Needs no labels.",
    "relative_error": "Lower is better; no unit. Root-mean-square difference of the logits from the original network's, "
    "over their own spread: 0 is no difference, 1 is as bad as always giving the mean answer. Needs no labels.",
    "kl": "Lower is better; in nats. Mean Kullback-Leibler divergence of the modified network's softmax from the "
    "original one's. Needs no labels.",
    "predicted_agreement": "Higher is better. Predicted share of unseen samples for which the pruned network gives the same "
    "first answer as the original one, and the interval that holds what is measured 9 times in 10. Plans that you measure "
    "narrow it. Needs no labels and runs nothing.",
    "predicted_error": "Lower is better; 100% is as bad as always giving the mean answer. Predicted RMS error of the logits on "
    "unseen samples over their own spread, $\\sqrt{\\sum_g (\\sum_l K_l \\sqrt{e_l})^2 / E\\|f - E f\\|^2}$, corrected by "
    "what was measured on other networks and on this one, and the interval that holds what is measured 9 times in 10.",
    "prefill": "Higher is faster. Tokens per second when a whole window is processed at once.",
    "decode": "Higher is faster. Tokens per second when they are generated one at a time, with the key-value cache.",
    # Forget
    "forget_accuracy": "Lower is better. Accuracy on test images of the forget classes.",
    "retain_accuracy": "Higher is better. Accuracy on test images of the retained classes.",
    "probe": "Lower is better. Accuracy on the forget classes of a linear classifier trained on the penultimate "
    "features. A high value means that the features still hold the class, and only its output is gone.",
    "mia": "Closer to 0.5 is better. Membership inference: AUC of an attack that uses the loss to separate training "
    "images of the class from unseen ones. 0.5 is guessing.",
    "class_specific": "Fidelity of each component alone on the images of one predicted class, $E_c\\langle A_i, "
    "Y\\rangle^2 / (E_c\\|A_i\\|^2 \\, E_c\\|Y\\|^2)$. Shown are the components, from all groups, whose fidelity is "
    "highest for the chosen classes compared with the others. A column that is bright in a single row is specific "
    "to that class.",
    "strength": "Up and right is better. Selected is the smallest strength at which the accuracy on calibration "
    "images of the class falls to the target. Every point was tried; the path starts at the original network.",
    "relearning": "Slower is better. Forget accuracy after a number of gradient descent steps on 100 images of the "
    "class and 100 others (batches of 32, rate 0.005, momentum 0.9, gradients clipped at 1). A network that learns "
    "the class much faster than one that never saw it has not forgotten it.",
    "recall": "Lower is better. Accuracy on the forget classes after BatchNorm statistics are re-estimated on the "
    "retained classes only. A high value means that the class is easily recovered.",
    # Modalities
    "agm": "1 leaves the gradient unchanged; above 1 the modality learns faster, below 1 slower. **Adaptive "
    "gradient modulation** (Li et al., 2023) multiplies the gradient of a modality's own output by $\\kappa_m = "
    "\\exp(\\alpha(\\tau_m - r_m))$. Here $r_m = \\exp(\\frac{M}{M-1}(\\bar s - s_m))$ measures how far the "
    "modality is ahead of the others in this batch ($s_m$: the cross-entropy of its own output), and $\\tau_m$ is "
    "the same quantity of the running means. OGM-GE multiplies the gradients of encoders, MSLR their learning "
    "rates; MSES multiplies by 0 once an encoder has stopped.",
    "mono": "Higher is better. A modality's own output $\\phi_m$ is its Shapley value: with two modalities $\\phi_a "
    "= \\frac12[f(a,v) - f(0,v) + f(a,0)]$, where 0 stands for a muted input. These outputs add up to the model's. "
    "Shown is the validation accuracy of each.",
    "alone": "Higher is better. *Alone*: a network trained on that modality only, by the same recipe. *In*: "
    "accuracy of the modality's own output inside the joint model.",
    "competition": "Lower is better: 0 means that the joint model holds all of what a network trained on the "
    "modality alone knows, 1 nothing more than the mean. That network's outputs $c_m$ are predicted from the joint "
    "features by a ridge regression fitted on other held-out samples, $d_m = \\mathrm{tr}((\\hat c_m - "
    "c_m)\\,\\mathrm{Cov}(c_m)^+(\\hat c_m - c_m)^\\top) / (nK)$.",
    "balance": "Higher is better. Test accuracy, mean over seeds. **Joint**: plain training. **AGM**: adaptive "
    "gradient modulation. **OGM-GE**: slows the encoder that is ahead and adds noise (late fusion only). **MSLR**: "
    "a learning rate for each encoder. **MSES**: stops an encoder when its modality no longer improves.",
    "degrade": "The modality keeps as many principal components as this share of its energy needs, as in AV-MNIST. "
    "A degraded modality is quickly learned and carries less information.",
}
