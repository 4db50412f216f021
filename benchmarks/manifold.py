"""The manifold's 400 digits: 400 calls of batch 1, as in the tutorial, against one call of 400.

Both have the same weights; the largest difference of their pixels is reported.
"""

import quiet  # noqa: F401  (before TensorFlow)

import numpy as np
from common import log, machine, measure, median_ratio, options, rounded, save, summary
from published import with_weights_of

from vae_course.manifold import latent_grid, latent_image
from vae_course.engine.families import FastCVAE

DIGITS = 20  # along one axis, as in the tutorial


def one_by_one(model, digit_size=28) -> np.ndarray:
    "The picture as the tutorial makes it, its rows from the top as the course has them."
    image = np.zeros((DIGITS * digit_size, DIGITS * digit_size))
    for i, z2 in enumerate(latent_grid(DIGITS)[::-1]):
        for j, z1 in enumerate(latent_grid(DIGITS)):
            digit = model.sample(np.array([[z1, z2]]))
            rows, columns = (slice(k * digit_size, (k + 1) * digit_size) for k in (i, j))
            image[rows, columns] = np.reshape(digit[0], (digit_size, digit_size))
    return image


def main():
    chosen, facts = options(__doc__).parse_args(), machine()
    model = FastCVAE(2, seed=0)
    published, pictures = with_weights_of(model), {}

    def tutorial():
        pictures["tutorial"] = one_by_one(published)

    def ours():
        pictures["ours"] = latent_image(model, DIGITS)

    first = measure({"tutorial": tutorial, "ours": ours}, 1)
    seconds = measure({"tutorial": tutorial, "ours": ours}, 1 if chosen.quick else 15)
    difference = np.abs(pictures["tutorial"] - pictures["ours"]).max()
    ratio = median_ratio(seconds["tutorial"], seconds["ours"])
    log(f"ratio {ratio:.1f}, largest difference of a pixel {difference:.1e}")
    save("manifold", {
        "digits": DIGITS**2,
        "tutorial_one_by_one": {"first_call_s": rounded(first["tutorial"][0])}
        | summary(seconds["tutorial"], "s"),
        "ours_in_one_call": {"first_call_s": rounded(first["ours"][0])}
        | summary(seconds["ours"], "s"),
        "ratio": ratio, "max_difference_of_probability": rounded(difference),
    }, facts, chosen.quick)


if __name__ == "__main__":
    main()
