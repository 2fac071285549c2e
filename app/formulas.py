"""What each number means: shown on demand beside it, with its formula."""

__all__ = ["FORMULAS"]

FORMULAS = {
    "fidelity": "**Subset fidelity** (Def. 3.1): the share of a layer's output energy that the chosen components can "
    "reconstruct, $FS(S) = 1 - \\min_\\delta E\\|Y - \\sum_{i \\in S} \\delta_i A_i\\|^2 / E\\|Y\\|^2$, weighted "
    "by energy over outputs and consumers. 1 is perfect, 0 is nothing.",
    "singleton": "Fidelity of one component alone: the squared cosine between its contribution and the whole output, "
    "$E\\langle A_i, Y\\rangle^2 / (E\\|A_i\\|^2 \\, E\\|Y\\|^2)$.",
    "class": "How well one component alone reconstructs what the layers that read it compute for the images that the network "
    "takes for one class $c$, with one factor $\\delta$ for each of those layers: $1 - \\min_\\delta E_c\\|Y - \\delta A_i\\|^2 "
    "/ E_c\\|Y\\|^2 = E_c\\langle A_i, Y\\rangle^2 / (E_c\\|A_i\\|^2 \\, E_c\\|Y\\|^2)$.",
    "exemplars": "The images with the largest mean squared activation of the component at the first layer that reads it, and the "
    "pixels that it comes from: integrated gradients from an image of the mean colour, absolute values summed over colours.",
    "eta": "A set of components whose fidelity reaches η is a **HiFi set** (Def. 3.4). The mark shows the "
    "smallest one in the greedy order.",
    "compensation": "What the remaining components may do to make up for the rest. **None**: nothing. **Scalar**: one "
    "factor for each (output, component) pair, $\\delta^* = G_{SS}^+ b_S$. **Full**: new weights by least "
    "squares, $W' = W H_{:,S} H_{SS}^+$. **Sequential**: the same layer by layer, each fitted to what the layers before "
    "it, already changed, really give it; the prediction is that of full.",
    "order": "**Greedy** takes away, one after the other, the component that costs least given all that are left. "
    "**Naive** ranks by singleton fidelity, which is optimal only where contributions are uncorrelated "
    "(Thm. 3.9).",
    "gain": "How much an error at this layer's output can grow on its way to the logits: $K = \\max_x \\|h(z + e) - "
    "h(z)\\| / \\|e\\|$ over the samples, everything beside the layer held as it is. **Directional**: $e$ as an edit makes "
    "it. **Jacobian**: the operator norm at each sample. **Random**: $e$ of any direction. **Pairs**: from one sample's "
    "activation to another's. All are seen on samples, so **lower bounds** of the true constant. **Operator norms** are an "
    "upper bound.",
    "settled": "The expected largest gain among n of the samples, and the middle 90% of all ways to draw them (exact). Flat at "
    "the end: more samples are unlikely to show much more. Below, the root-mean-square gain with the 90% confidence band of n "
    "samples.",
    "slack": "The layers are swapped in from the last to the first, one at a time, or all of a block or a stage together. "
    "Tightness is a product: what the largest gain costs where most samples have a smaller one, and what adding up errors "
    "costs that partly cancel. Layers that make up for each other, as sequential compensation fits them, cancel most.",
    "norms": "LayerNorm divides by $\\sqrt{\\mathrm{var} + \\varepsilon}$, so it can magnify by up to $\\max|\\gamma|$ over "
    "the smallest seen; it has no constant where the norm may be as small as it likes.",
    "bound": "Predicted limit of the RMS error of the logits (Thm. 3.6): $\\sum_l K_l \\sqrt{E\\|Y_l - \\hat "
    "Y_l\\|^2}$. The $K_l$ are estimated on samples of the unmodified network, so this is an estimate of "
    "the bound.",
    "tightness": "Bound divided by the measured error. 1 would be perfect; ten means that the bound is ten times too "
    "careful.",
    "flops": "Multiply-accumulates of one sample, counted once.",
    "params": "All weights, biases and normalisation parameters.",
    "table_ms": "Predicted time of one forward pass on this machine: every layer at its new widths, read off a table of "
    "timings at several widths (multiples of eight channels apart from odd numbers), and the rest of the network. *Time the "
    "layers*, under Score and widths, makes the table.",
    "sensitivity": "Estimated error of the logits, $\\sum_l K_l \\sqrt{e_l}$ over the layers that read the group, when this "
    "group alone is cut to so much and everything else stays whole. Coupled layers are one group.",
    "latency_ms": "Median time of one batch on this machine; it varies with what else runs here.",
    "accuracy": "Share of the labelled test images that are answered correctly.",
    "probe": "Accuracy on the forgotten classes of a linear classifier trained on the penultimate features. High "
    "means that the class is still in there, and only its answer is gone.",
    "mia": "Membership inference: how well an attacker tells training images of the class from new ones by the "
    "loss. 0.5 is guessing.",
    "living": "Fidelity of each component alone for the images of one class, $E_c\\langle A_i, Y\\rangle^2 / (E_c\\|A_i\\|^2 "
    "\\, E_c\\|Y\\|^2)$. Shown are the components, of all groups, that are highest for the chosen classes beside the others: a "
    "column that is bright in one row only belongs to that class alone.",
    "strength": "The smallest strength that brings the accuracy on the calibration images of the class down to the target. Every "
    "point was tried; the path begins at the unchanged network.",
    "relearning": "Forget accuracy after so many steps of gradient descent on 100 images of the class and as many of the others "
    "(batches of 32, rate 0.005, momentum 0.9, gradients clipped at 1). What learns the class much faster than a network that "
    "never saw it still knows it.",
    "recall": "Accuracy on the forgotten classes after re-estimating BatchNorm statistics on the retained ones. "
    "High means that the class comes back with so little effort.",
    "agm": "**Adaptive gradient modulation** (Li et al., 2023): the gradient that flows back through a modality's own output"
    " is multiplied by $\\kappa_m = \\exp(\\alpha(\\tau_m - r_m))$, with $r_m = \\exp(\\frac{M}{M-1}(\\bar s - s_m))$"
    " how far the modality is ahead of the others in this batch ($s_m$: the cross-entropy of its own output) and "
    "$\\tau_m$ the same of the running means. Above 1 it learns faster, below 1 slower. OGM-GE multiplies the "
    "gradients of encoders, MSLR their rates, MSES by 0 once one has stopped.",
    "mono": "A modality's own output $\\phi_m$ is its Shapley value: with two modalities $\\phi_a = \\frac12[f(a,v) - f(0,v) "
    "+ f(a,0)]$, where 0 stands for a muted input. The outputs add up to the model's. Shown is how often each alone "
    "is right.",
    "alone": "*Alone*: a network of its own, trained on that modality only by the same recipe. *In*: what the modality's own "
    "output inside the joint model reaches.",
    "competition": "How much of what a modality alone would know the joint model does not hold: its mono-modal network's outputs "
    "$c_m$ are predicted from the joint features by a ridge regression fitted on other held-out samples, $d_m = "
    "\\mathrm{tr}((\\hat c_m - c_m)\\,\\mathrm{Cov}(c_m)^+(\\hat c_m - c_m)^\\top) / (nK)$. 0: it holds everything. "
    "1: nothing more than the mean.",
    "balance": "Test accuracy, mean over seeds. **Joint**: plain training. **AGM**: adaptive gradient modulation. **OGM-GE**: "
    "slows the encoder that is ahead, adds noise (late fusion only). **MSLR**: a learning rate for each encoder. "
    "**MSES**: an encoder stops when its modality no longer improves.",
    "degrade": "The modality keeps only as many principal components as hold this share of its energy, as AV-MNIST does. A "
    "degraded modality is quick to learn from and tells less.",
}
