"""An adapter of the data side alone: span corruption and the rows of a prefix model, in plain loops.

Written from conformance/README.md and SPEC.md alone. Try it from this folder:
    openmoe conform --implementation ul2_spans:Adapter --profile quick
What it does not offer (a model, a vocabulary, packing's start token, draws) is reported as SKIPPED.
"""

import numpy as np


class Adapter:
    """The functions of conformance/README.md that this implementation has."""

    name = "ul2_spans"
    version = "1.0"
    rejects_invalid_input = True

    def noise_counts(self, length, *, noise_density, mean_noise_span_length):
        """Return how many tokens are noise, in how many spans."""
        if not (length >= 1 and 0 <= noise_density <= 1 and mean_noise_span_length > 0):
            raise ValueError("there must be a token, a share and a span")
        length = max(length, 2)
        # float32, half to even: in float64 some lengths have one token more or less
        noise = int(np.rint(np.float32(length) * np.float32(noise_density)))
        noise = min(max(noise, 1), length - 1)
        spans = max(int(np.rint(np.float32(noise) / np.float32(mean_noise_span_length))), 1)
        if spans > min(noise, length - noise):
            raise ValueError("there are more spans than tokens of a kind")
        names = ("num_noise_tokens", "num_noise_spans", "num_nonnoise_tokens")
        return dict(zip(names, (noise, spans, length - noise), strict=True))

    def noise_mask(
        self,
        length,
        *,
        noise_density,
        mean_noise_span_length,
        noise_permutation,
        nonnoise_permutation,
    ):
        """Return which tokens are noise: runs without and with it in turn."""
        if noise_density == 0:
            return [False] * length
        counts = self.noise_counts(
            length, noise_density=noise_density, mean_noise_span_length=mean_noise_span_length
        )
        runs = [
            self._runs(counts[f"num_{kind}_tokens"], counts["num_noise_spans"], permutation)
            for kind, permutation in (
                ("nonnoise", nonnoise_permutation),
                ("noise", noise_permutation),
            )
        ]
        mask = []
        for other, noise in zip(*runs, strict=True):
            mask += [False] * other + [True] * noise
        return mask[:length]

    def _runs(self, tokens, spans, permutation):
        if sorted(permutation) != list(range(tokens - 1)):
            raise ValueError("there must be a permutation of the places between tokens")
        lengths = [1]
        for place in permutation:
            if place < spans - 1:  # a run begins behind this token
                lengths.append(1)
            else:
                lengths[-1] += 1
        return lengths

    def replace_noise(self, tokens, noise_mask, *, transform, vocabulary_size, num_sentinels=300):
        """Return tokens with runs, or single tokens, left out or put into sentinels."""
        if len(tokens) != len(noise_mask):
            raise ValueError("there must be as many tokens as marks")
        if any(not 0 <= token < vocabulary_size for token in tokens):
            raise ValueError("tokens must be ids of the vocabulary")
        if transform in ("drop_noise_tokens", "drop_nonnoise_tokens"):
            kept = transform == "drop_nonnoise_tokens"
            return [t for t, noisy in zip(tokens, noise_mask, strict=True) if noisy == kept]
        what, _, how = transform.partition("_")
        if what not in ("noise", "nonnoise") or not how.endswith("sentinel"):
            raise ValueError(f"there is no {transform}")
        found, runs, before = [], 0, False
        for token, noisy in zip(tokens, noise_mask, strict=True):
            replaced = noisy == (what == "noise")
            if not replaced:
                found.append(token)
            elif not before or how == "token_to_sentinel":
                runs += 1
                if "unique" in how and runs > num_sentinels:
                    raise ValueError("there are more runs than sentinels")
                found.append(vocabulary_size - (runs if "unique" in how else 1))
            before = replaced
        return found

    def decoder_features(self, examples, *, lengths):
        """Return rows of inputs and targets, or of targets alone, one example each."""
        if "targets" not in lengths or min(lengths["targets"], len(examples)) < 1:
            raise ValueError("there must be an example and room for its targets")
        length = sum(lengths.values())
        rows = {name: [] for name in ("target", "input", "weight", "flag")}
        for one in examples:
            parts = {name: list(one[name]) for name in sorted(lengths)}
            if any(len(part) > lengths[name] for name, part in parts.items()):
                raise ValueError("an example is longer than its row")
            width, row = (
                len(parts.get("inputs", ())),
                [token for p in parts.values() for token in p],
            )
            row += [0] * (length - len(row))
            rows["target"].append(row)
            rows["input"].append([0, *row[:-1]])
            # an exclusive or: an id 0 among the inputs gets a weight
            rows["weight"].append([(i < width) != (token != 0) for i, token in enumerate(row)])
            rows["flag"].append([i <= width for i in range(length)])
        names = {"target": "target_tokens", "input": "input_tokens", "weight": "loss_weights"}
        if "inputs" in lengths:
            names["flag"] = "causal_attention"
        return {f"decoder_{names[n]}": np.array(rows[n], np.int32) for n in names}
