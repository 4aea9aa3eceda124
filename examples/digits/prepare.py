"""Write scikit-learn's 1,797 handwritten digits as one CSV file: 64 pixels, then the digit."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
Path("data").mkdir(exist_ok=True)
np.savetxt("data/digits.csv", np.column_stack([digits.data, digits.target]), fmt="%d", delimiter=",")
