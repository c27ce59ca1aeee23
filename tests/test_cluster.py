import numpy as np
import pytest

from tldr.cluster import PCA, POINTS_PER_CENTROID, KMeans, faiss_seed, quotas, ranks


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def blobs(rng, *, count: int = 600, spread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Points around six corners, and which corner each belongs to."""
    corners = 4 * np.eye(6, 5, dtype=np.float32)
    label = rng.integers(6, size=count)
    return corners[label] + spread * rng.standard_normal((count, 5), np.float32), label


def test_components_explain_variance_in_order(rng):
    points = rng.standard_normal((500, 4)) * [1, 5, 0.1, 3] + 7
    pca = PCA.fit(points, 4)
    assert pca.components.shape == (4, 4)
    assert pca.components @ pca.components.T == pytest.approx(np.eye(4), abs=1e-5)
    assert np.abs(pca.components[0]).argmax() == 1
    assert pca.variance == pytest.approx(np.array([25, 9, 1, 0.01]), rel=0.2)
    moved = pca(points)
    assert moved.dtype == np.float32
    assert np.cov(moved.T) == pytest.approx(np.diag(pca.variance), abs=1e-3)
    assert np.linalg.norm(moved[3] - moved[8]) == pytest.approx(np.linalg.norm(points[3] - points[8]), rel=1e-4)


def test_signs_of_components_are_settled(rng):
    points = rng.standard_normal((300, 6)) * np.arange(1, 7)
    pca = PCA.fit(points, 3)
    assert (np.take_along_axis(pca.components, np.abs(pca.components).argmax(1)[:, None], 1) > 0).all()
    assert PCA.fit(points[::-1], 3).components == pytest.approx(pca.components, abs=1e-5)


def test_there_are_no_more_components_than_the_sample_has(rng):
    assert PCA.fit(rng.standard_normal((3, 10)), 8).components.shape == (3, 10)
    assert PCA.fit(rng.standard_normal((20, 4)), 8).components.shape == (4, 4)
    flat = PCA.fit(np.ones((5, 3)), 2)
    assert flat.variance.tolist() == [0, 0]
    assert not flat(np.ones((5, 3))).any()


def test_large_offsets_cost_no_precision(rng):
    """float16 and uint16 signals come with means far from zero."""
    points = rng.standard_normal((400, 3)) * [3, 1, 0.3]
    near, far = PCA.fit(points, 3), PCA.fit((points + 1000).astype(np.float32), 3)
    assert far.variance == pytest.approx(near.variance, rel=0.01)


def test_well_parted_groups_are_found(rng):
    points, label = blobs(rng)
    cluster, distance = KMeans.fit(points, 24, seed=0).assign(points)
    assert cluster.dtype == np.int64
    assert len({(int(a), int(b)) for a, b in zip(cluster, label, strict=True)}) == len(set(cluster)) == 24
    assert (distance < 1).all()


def test_assignment_is_to_the_nearest(rng):
    points, _ = blobs(rng, spread=2.0)
    kmeans = KMeans.fit(points, 12, seed=1)
    cluster, distance = kmeans.assign(points)
    naive = ((points[:, None] - kmeans.centroids[None]) ** 2).sum(2)
    assert np.array_equal(cluster, naive.argmin(1))
    assert distance == pytest.approx(naive.min(1), abs=1e-3)
    assert (distance >= 0).all()
    parts = [kmeans.assign(part) for part in np.array_split(points, 7)]
    assert np.array_equal(np.concatenate([c for c, _ in parts]), cluster)


def test_the_seed_decides(rng):
    points = rng.standard_normal((500, 8), np.float32)
    one, again, other = (KMeans.fit(points, 20, seed=seed).centroids for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_any_array_is_taken(rng):
    points, _ = blobs(rng)
    expected = KMeans.fit(points, 6, seed=0).assign(points)[0]
    for same in (points.astype(np.float64), np.asfortranarray(points), np.repeat(points, 2, 0)[::2]):
        assert np.array_equal(KMeans.fit(same, 6, seed=0).assign(same)[0], expected)


def test_as_many_clusters_as_rows_and_equal_rows(rng):
    points = rng.standard_normal((10, 3), np.float32)
    cluster, distance = KMeans.fit(points, 10, seed=0).assign(points)
    assert sorted(cluster) == list(range(10))
    assert distance == pytest.approx(np.zeros(10), abs=1e-5)
    same, far = KMeans.fit(np.ones((50, 3)), 4, seed=0).assign(np.ones((50, 3)))
    assert len(same) == 50
    assert far == pytest.approx(np.zeros(50), abs=1e-4)


def test_errors(rng):
    with pytest.raises(ValueError, match="11 clusters asked of 10 rows"):
        KMeans.fit(np.ones((10, 3)), 11, seed=0)
    points = rng.standard_normal((10, 3))
    for strange in (np.nan, np.inf):
        points[4, 1] = strange
        with pytest.raises(ValueError, match="NaN or infinite"):
            KMeans.fit(points, 2, seed=0)


def test_k_means_learns_from_a_sample_of_many_points(rng):
    points, label = blobs(rng, count=24 * POINTS_PER_CENTROID + 2000)
    cluster, _ = KMeans.fit(points, 24, seed=0).assign(points)
    assert len({(int(a), int(b)) for a, b in zip(cluster, label, strict=True)}) == len(set(cluster)) == 24


def test_spherical_centroids_have_length_one(rng):
    points, _ = blobs(rng)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    centroids = KMeans.fit(points, 6, seed=0, spherical=True).centroids
    assert np.linalg.norm(centroids, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    assert (np.linalg.norm(KMeans.fit(points, 2, seed=0).centroids, axis=1) < 0.9).all()


@pytest.mark.parametrize("seed", range(20))
def test_quotas_are_the_least_squares_within_bounds(seed):
    """No whole numbers are better: to move one from a cluster to another never brings both nearer to what is wanted."""
    rng = np.random.default_rng(seed)
    high = rng.integers(1, 60, 12)
    low = rng.integers(0, high + 1)
    wanted = rng.dirichlet(np.ones(12)) * 200
    for total in rng.integers(low.sum(), high.sum() + 1, 10):
        quota = quotas(wanted, low, high, int(total))
        assert quota.sum() == total
        assert ((low <= quota) & (quota <= high)).all()
        excess = quota - wanted
        giver, taker = excess[quota > low], excess[quota < high]
        if len(giver) and len(taker):
            assert taker.min() - giver.max() >= -1 - 1e-6


def test_quotas_give_what_is_wanted_where_they_can():
    zero, ten = np.zeros(3, int), np.full(3, 10)
    assert quotas(np.array([2.0, 3, 5]), zero, ten, 10).tolist() == [2, 3, 5]
    assert quotas(np.array([20.0, 3, 5]), zero, ten, 18).tolist() == [10, 3, 5]
    assert quotas(np.array([20.0, 3, 5]), zero, ten, 20).tolist() == [10, 4, 6]
    assert quotas(np.array([0.0, 0, 10]), np.array([2, 2, 0]), ten, 10).tolist() == [2, 2, 6]
    with pytest.raises(ValueError, match="31 lies outside the bounds, 0 to 30"):
        quotas(np.ones(3), zero, ten, 31)


def test_ranks_are_places_inside_the_cluster():
    label, merit = np.array([2, 0, 2, 0, 2, 5]), np.array([1.0, 3, 9, 4, 1, 0])
    assert ranks(label, merit).tolist() == [1, 1, 0, 0, 2, 0]


@pytest.mark.parametrize("seed", [0, 2**31 - 2, 2**31 - 1, 2**32 - 1])
def test_any_seed_is_one_for_faiss(seed):
    rows = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    assert KMeans.fit(rows, 4, seed=seed).centroids.shape == (4, 3)
    assert 0 < faiss_seed(seed) < 2**31
