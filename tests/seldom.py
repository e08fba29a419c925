"""Tests of the default suite that are left to `pytest -m slow`, to keep it within its minutes.

Compilation takes most of the suite's time. Of a test with a case for every family or option, the
default suite runs the cases of `USUAL`. The tests of `SELDOM` have shorter ones beside them, which
are named there.
"""

USUAL = {
    "test_free_energy.py::test_both_forms_agree": (
        *("normal-full", "normal-missing", "poisson-map", "student-map"),
        *("product", "noise", "factors-tied", "restricted", "labelled"),
    ),
    "test_laws.py::test_fit_in_both_precisions": (
        *("normal-full-float32", "normal-missing-float32", "poisson-float64", "student-float32"),
        *("factors-spherical-float64", "gamma-float64", "product-float64", "beta-float64"),
    ),
    "test_laws.py::test_statistics_add_over_units": (
        *("bernoulli", "beta", "categorical", "components", "each", "exponential", "factors-tied"),
        *("gamma", "labelled", "log-normal", "noise", "normal-diagonal", "normal-full-map"),
        *("normal-missing", "normal-tied", "poisson-map", "product", "regression-normal"),
        *("restricted", "student", "weibull"),
    ),
    "test_gradient.py::test_every_model_against_differences": (
        *("normal-full", "normal-missing", "poisson", "components", "noise", "each"),
    ),
    "test_large.py::test_a_pass_in_chunks_is_the_pass_in_one_piece": (
        *("normal-full-map", "normal-missing", "student", "product", "multinomial", "each"),
    ),
    "test_large.py::test_base_measures_are_summed_once_and_counted": (
        *("float32-poisson", "float64-multinomial"),
    ),
    "test_hmm.py::test_other_forms_are_the_recursions": ("gate-is_long", "zeros-is_long"),
    "test_hmm.py::test_blocks_of_rows_change_nothing": ("gate-", "plain-is_long"),
    "test_hmm.py::test_sums_over_all_paths": (
        *("normal-1", "normal-2", "normal-3", "categorical-3", "mixture-3"),
    ),
    "test_gate.py::test_the_gradient_through_a_fit_is_that_of_differences": ("gate",),
    "test_gradient_trust.py::test_a_trusted_gradient_is_right": ("float64-poisson",),
    "test_gradient_step.py::test_enough_steps_are_the_exact_m_step": (
        *("adam-normal-full", "newton-poisson", "lbfgs-categorical-map"),
    ),
    "test_missing.py::test_student_t": ("full", "tied"),
    "test_parts.py::test_parts_change_nothing": ("batch", "ragged", "weights"),
    "test_slices.py::test_slices_change_nothing": ("batch", "restarts"),
    "test_slices.py::test_screened_restarts_are_two_fits": ("True",),
    "test_batch.py::test_the_lanes_do_not_matter": ("7", "lanes3"),
    "test_gradient_limits.py::test_a_saddle_is_not_trusted": ("9",),
    "test_devices.py::test_on_four_devices": ("plain-restarts", "rows"),
    "test_gradient_joint.py::test_a_free_energy_alone_against_the_closed_form": ("False-40",),
}
"""The cases of the default suite, by test."""

SELDOM = {
    # Rarely taken ways through large data; `test_a_pass_in_chunks_is_the_pass_in_one_piece`.
    "test_large.py::test_restarts_share_the_features_and_agree_with_single_fits",
    "test_large.py::test_float32_stops_where_float64_stops",
    "test_large.py::test_one_lane_that_needs_centred_rows_gets_them",
    # `test_gradient.py`, and batches there.
    "test_gradient_limits.py::test_a_ragged_batch_of_traced_arrays",
    "test_gradient_limits.py::test_a_nearly_singular_fit_against_differences",
    "test_gradient_limits.py::test_float32",
    "test_gradient_joint.py::test_topics_of_a_batch_with_restarts",
    "test_gradient_step.py::test_a_learning_rate_far_too_large_still_climbs",
    "test_gradient_rules.py::test_a_second_derivative_is_the_difference_of_first_ones",
    "test_semi_markov.py::test_gradients_with_gaps_equal_differences",
    # `test_lda.py`: blocks, padding, order, weights and rules are the usual tests.
    "test_lda.py::test_documents_stored_by_class_give_the_same_answers",
    "test_lda.py::test_one_long_document_takes_memory_in_proportion_to_its_words",
    "test_lda.py::test_a_large_corpus_goes_the_same_way",
    "test_lda.py::test_a_batch_of_corpora_is_as_each_alone",
    "test_lda.py::test_documents_of_a_block_that_is_not_full_move_too",
    # `test_variational.py`: every other rule is run there.
    "test_variational.py::test_blocks_climb_to_the_same_optimum",
    # `test_gate.py`: the pass and the gradient of a gate.
    "test_gate.py::test_gradient_steps_accelerators_and_restrictions_keep_the_first_row",
    "test_gate.py::test_a_pass_over_many_units_is_that_over_few",
    "test_gate.py::test_large_coefficients_are_found_from_most_starts",
    # Fleets, gradients and slices with the default accelerator are in `test_batch.py`,
    # `test_gradient.py` and `test_slices.py`.
    "test_auto.py::test_fleets_restarts_and_traced_fits_are_the_single_ones",
    "test_auto.py::test_the_gradient_is_that_of_the_optimum",
    "test_auto.py::test_slices_of_a_long_climb_change_nothing",
    "test_hmm.py::test_a_fleet_may_be_larger_than_its_lanes",
    "test_slices.py::test_screened_restarts_under_jit",
    # Groups of normals and regressions: `test_groups.py`.
    "test_groups.py::test_other_mixtures_take_groups",
}
"""Tests with shorter ones beside them."""


def is_seldom(item) -> bool:
    """Whether a collected test is left to `pytest -m slow`."""
    name = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
    cases = USUAL.get(name)
    if cases is None:
        return name in SELDOM
    return item.callspec.id not in cases
