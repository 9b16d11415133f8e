"""A random data set and predictions with mistakes of all kinds, as COCO's json."""

import numpy as np


def scene(images: int = 12, classes: int = 3, seed: int = 0) -> tuple[dict, list[dict]]:
    """The content of a json file of boxes without crowds, and predictions of them."""
    rng = np.random.default_rng(seed)
    records, truth, results = [], [], []
    for image in range(1, images + 1):
        records.append({"id": image, "file_name": f"{image}.png", "width": 200, "height": 150})
        for _ in range(int(rng.integers(0, 7))):
            box = [*rng.integers(0, 120, 2).tolist(), *rng.integers(8, 60, 2).tolist()]
            label = int(rng.integers(1, classes + 1))
            truth.append(
                dict(
                    id=len(truth) + 1,
                    image_id=image,
                    category_id=label,
                    bbox=box,
                    iscrowd=0,
                    area=box[2] * box[3],
                )
            )
            for _ in range(int(rng.integers(0, 3))):
                near = (np.array(box) + rng.normal(0, 6, 4)).clip(1).round(2).tolist()
                wrong = rng.random() < 0.25
                guess = int(rng.integers(1, classes + 1)) if wrong else label
                results.append(_result(image, guess, near, rng))
        for _ in range(int(rng.integers(0, 3))):
            box = [*rng.integers(0, 120, 2).tolist(), *rng.integers(8, 60, 2).tolist()]
            results.append(_result(image, int(rng.integers(1, classes + 1)), box, rng))
    categories = [{"id": index, "name": f"kind {index}"} for index in range(1, classes + 1)]
    return {"images": records, "annotations": truth, "categories": categories}, results


def _result(image: int, label: int, box: list, rng: np.random.Generator) -> dict:
    return dict(image_id=image, category_id=label, bbox=box, score=round(float(rng.random()), 4))
