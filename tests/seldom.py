"""Tests of the default suite that are left to `pytest -m slow`, to keep it within its minutes.

Compilation takes most of the suite's time. Of a test with a case for every family or option, the
default suite runs the cases of `USUAL`. The tests of `SELDOM` have shorter ones beside them, which
are named there.
"""

USUAL = {
    "test_acceleration.py::test_a_fifth_of_the_evaluations_and_no_lower_end": (
        *("latent-class-squarem", "latent-class-anderson", "full-squarem", "full-anderson"),
    ),
    "test_acceleration.py::test_what_is_kept_never_falls": (
        *("squarem-normal-full", "anderson-normal-missing", "anderson-product"),
        *("squarem-factors-spherical", "squarem-noise", "anderson-poisson-map"),
        *("anderson-restricted", "squarem-gamma"),
    ),
    "test_batch.py::test_nested_vmap": ("axes0",),
    "test_batch.py::test_the_lanes_do_not_matter": ("7", "lanes3"),
    "test_bayesian.py::test_it_finds_how_many_components_there_are": ("dirichlet_process-float32",),
    "test_bayesian.py::test_one_component_is_exact_and_two_are_a_bound": (
        *("full-prior", "product", "poisson"),
    ),
    "test_bayesian.py::test_scikit_learns_iterates": (
        *("full-dirichlet_process", "tied-dirichlet", "diagonal-dirichlet"),
    ),
    "test_bootstrap.py::test_errors_agree_with_the_sandwich": ("rows", "bayesian"),
    "test_column_families.py::test_many_rows_in_float32": ("log-normal", "negative-binomial"),
    "test_command_line.py::test_units_beyond_float32": ("1e-25",),
    "test_convergence.py::test_no_iteration_lowers_the_objective": (
        *("full", "poisson-map", "categorical"),
    ),
    "test_convergence.py::test_the_gradient_vanishes_at_convergence": ("full", "poisson"),
    "test_degenerate.py::test_collapse_is_flagged": ("full-float32", "diagonal-float32"),
    "test_degenerate.py::test_few_units": (
        *("full-float32_0", "tied-float64_1", "diagonal-float64_1", "spherical-float32_0"),
    ),
    "test_degenerate.py::test_lanes_of_a_vmap_are_apart": ("float32-full",),
    "test_degenerate.py::test_other_families": ("Gamma-float32", "Categorical-float64"),
    "test_degenerate.py::test_units_do_not_matter": ("full-float64", "spherical-float32"),
    "test_degenerate.py::test_weights_beyond_the_range_of_the_dtype": ("float32",),
    "test_devices.py::test_on_four_devices": ("plain", "rows"),
    "test_estimators.py::test_bayesian_mixture_takes_the_steps_of_scikit_learn": ("full", "diag"),
    "test_families.py::test_draws_have_the_mean_and_the_score_of_the_model": (
        *("negative-binomial", "product", "gamma", "student", "normal-full-3", "multinomial"),
        *("categorical", "each", "log-normal", "normal-tied-3"),
    ),
    "test_fit.py::test_named_starts": ("random",),
    "test_free_energy.py::test_both_forms_agree": (
        *("normal-full", "normal-missing", "poisson-map", "student-map", "product", "noise"),
        *("factors-tied", "restricted", "labelled"),
    ),
    "test_free_energy.py::test_why_em_climbs": (
        *("normal-full", "normal-missing", "poisson-map", "student-map", "product", "noise"),
        *("factors-tied", "restricted", "labelled", "components", "categorical", "multinomial"),
        *("gamma",),
    ),
    "test_fuzz.py::test_calls_that_failed": (
        *("280-8", "10-12", "194-32", "379-42", "188-45", "78-0"),
    ),
    "test_fuzz.py::test_random_calls": (
        *("full-jit", "full-float32", "poisson-vmap", "diagonal-value", "diagonal-params"),
        *("categorical",),
    ),
    "test_gallery.py::test_blocks": ("2-4", "3-12"),
    "test_gate.py::test_the_gradient_through_a_fit_is_that_of_differences": ("gate",),
    "test_gradient.py::test_every_model_against_differences": ("normal-full", "poisson"),
    "test_gradient_joint.py::test_a_free_energy_alone_against_the_closed_form": ("False-40",),
    "test_gradient_joint.py::test_rules_that_end_where_em_ends_have_its_gradient": ("blocks",),
    "test_gradient_limits.py::test_a_saddle_is_not_trusted": ("9",),
    "test_gradient_step.py::test_enough_steps_are_the_exact_m_step": (
        *("adam-normal-full", "newton-poisson", "lbfgs-categorical-map"),
    ),
    "test_gradient_trust.py::test_a_trusted_gradient_is_right": ("float64-poisson",),
    "test_hmm.py::test_every_rule_ends_where_em_does": ("online", "hard", "squarem", "gradient"),
    "test_hmm.py::test_no_step_lowers_the_objective_and_the_end_is_stationary": ("free",),
    "test_hmm.py::test_sums_over_all_paths": ("normal-2", "categorical-3"),
    "test_kmeans.py::test_iris_as_published": ("2", "3", "6"),
    "test_large.py::test_a_pass_in_chunks_is_the_pass_in_one_piece": (
        *("normal-full-map", "product", "multinomial", "each"),
    ),
    "test_large.py::test_base_measures_are_summed_once_and_counted": ("float32-poisson",),
    "test_large.py::test_centred_rows_are_taken_only_where_needed": ("spherical",),
    "test_large.py::test_every_product_of_two_features_has_a_place": ("3", "16"),
    "test_large.py::test_float32_gives_the_float64_answer": (
        *("offset-spherical", "scaled-spherical"),
    ),
    "test_large.py::test_many_passes_share_what_is_the_same_in_each": ("categorical",),
    "test_laws.py::test_fit_in_both_precisions": (
        *("normal-full-float32", "normal-missing-float32", "poisson-float64"),
        *("factors-spherical-float64", "gamma-float64"),
    ),
    "test_lda.py::test_sweeps_never_lower_the_bound": ("bayes", "map"),
    "test_linalg.py::test_collinear_columns_are_always_noticed": (
        *("float32-full-2", "float64-tied-10"),
    ),
    "test_linalg.py::test_floor_is_in_the_units_of_the_data_and_flagged_where_it_acts": (
        *("full", "diagonal"),
    ),
    "test_linalg.py::test_identical_rows_and_constant_columns": ("float32-full", "float64-tied"),
    "test_linalg.py::test_no_restart_on_tied_values_is_nonfinite": ("float32",),
    "test_missing.py::test_complete_rows_give_the_plain_fit_and_holes_only_climb": ("VVV", "VII"),
    "test_missing.py::test_student_t": ("full",),
    "test_missing.py::test_student_t_starts_at_observed_cells": ("spherical",),
    "test_missing_columns.py::test_a_fit_with_missing_cells": ("poisson",),
    "test_missing_columns.py::test_missing_cells_drop_out_of_density_and_sums": (
        *("negative-binomial", "categorical", "bernoulli", "gamma", "log-normal"),
    ),
    "test_noise_component.py::test_the_fused_pass_is_the_plain_one": (
        *("float32-normal", "float64-poisson"),
    ),
    "test_noise_component.py::test_the_gradient_through_a_fit_is_that_of_differences": ("True",),
    "test_parts.py::test_parts_change_nothing": ("weights",),
    "test_published.py::test_published_chain": (
        *("fedfunds-ar1-2", "hsmm-earthquakes", "geyser-bernoulli-2", "speed-both-2"),
        *("earthquakes-2", "earthquakes-stationary-2", "earthquakes-gap-2", "faithful-series-2"),
    ),
    "test_published.py::test_published_factors": (
        *("ability-2", "iris-mixture-ppca-2", "harman74-2", "wine-factor-3", "maxwell-3"),
    ),
    "test_published.py::test_published_structure": (
        *("diabetes-VVE-3", "iris-VEV-2", "faithful-EVE-3", "faithful-VEE-3"),
    ),
    "test_regression.py::test_a_fit_maximises_the_penalised_likelihood": ("binomial", "normal"),
    "test_regression.py::test_m_step_never_lowers_the_expected_log_likelihood": (
        *("free-binomial", "free-normal", "shared, with a prior-poisson"),
        *("shared, with a prior-gamma",),
    ),
    "test_regression.py::test_one_component_is_the_plain_glm": (
        *("negative_binomial", "binomial", "gamma"),
    ),
    "test_restricted.py::test_accelerated_to_the_same_optimum": ("anderson",),
    "test_restricted.py::test_the_closed_form_is_the_conditional_maximum": (
        *("weights fixed", "covariance", "codes", "gamma", "means equal of tied", "mean"),
        *("one variance", "weights tied"),
    ),
    "test_restricted.py::test_the_slope_by_a_fixed_value": ("normal",),
    "test_result.py::test_predictions_outside_the_support": ("product", "categorical"),
    "test_result.py::test_save_and_load": ("product", "normal-missing", "gamma-map", "multinomial"),
    "test_rules.py::test_batches_restarts_and_vmap_give_the_single_fits": ("constrained",),
    "test_rules.py::test_what_is_promised_never_falls": (
        *("gradient-student", "variational-product", "hard-normal-full", "constrained-components"),
        *("tempered-restricted", "blocks-student-map", "stochastic-noise", "incremental-labelled"),
    ),
    "test_select.py::test_absent_components_change_no_step": (
        *("normal-full", "product", "factors-tied", "student-tied", "categorical", "gamma"),
    ),
    "test_select.py::test_padded_starts_are_those_of_fit": ("normal-full",),
    "test_semi_markov.py::test_every_rule_ends_where_em_does": ("hard", "squarem"),
    "test_semi_markov.py::test_no_step_lowers_the_objective_and_the_end_is_stationary": (
        *("poisson",),
    ),
    "test_semi_markov.py::test_sums_over_all_segmentations": ("normal-2-poisson-4-False",),
    "test_semi_markov.py::test_the_m_step_of_durations_is_the_optimum_with_its_derivative": (
        *("negative_binomial",),
    ),
    "test_slices.py::test_screened_restarts_are_two_fits": ("True",),
    "test_slices.py::test_slices_change_nothing": ("batch",),
    "test_statuses.py::test_a_bad_lane_leaves_the_others_alone": ("family0-x0-1.5", "family2-x2-0"),
    "test_structures.py::test_derivative_of_the_m_step": ("EVE", "VVE", "VEI", "EEV", "EVV"),
    "test_structures.py::test_fit": ("VVE",),
    "test_structures.py::test_repeated_m_step": (
        *("EVE-1-3", "EVE-2-2", "VVE-2-2", "VEE-2-2", "VEV-3-1", "VEI-1-3", "EEV-2-2", "EVV-1-3"),
        *("EII-3-1",),
    ),
    "test_student.py::test_a_step_never_lowers_the_likelihood": ("full", "tied"),
    "test_student.py::test_the_normal_limit": ("full", "diagonal"),
    "test_variational.py::test_accelerated_rules_are_monotone_and_end_where_plain_ones_do": (
        *("constrained-anderson", "hard-squarem"),
    ),
}
"""The cases of the default suite, by test."""

LAWS = (
    *("normal-full", "normal-missing", "poisson-map", "student-map", "product", "noise", "gamma"),
    *("factors-tied", "restricted", "labelled", "components", "each", "categorical"),
    *("multinomial", "regression-normal"),
)
"""The models of the laws. Those of a model share a program, so that a model costs the same in one
law as in all."""

USUAL |= {
    f"test_laws.py::{name}": LAWS
    for name in (
        *("test_statistics_add_over_units", "test_statistics_are_linear_in_weights"),
        *("test_weight_zero_is_absent_and_two_is_twice", "test_one_step_climbs"),
        "test_free_energy_is_the_evidence_at_the_posterior_and_less_elsewhere",
        *("test_fisher_identity", "test_components_permute"),
    )
}

SELDOM = {
    # Restrictions: the laws and the other tests of `test_restricted.py`.
    "test_restricted.py::test_the_gradient_by_a_fixed_value",
    "test_restricted.py::test_frozen_params_keep_their_start_and_ties_hold",
    # Chains: sums over all paths, fleets and the published series are usual tests.
    "test_hmm.py::test_a_gate_climbs_to_a_stationary_point_whatever_the_units_of_inputs",
    "test_hmm.py::test_the_chunked_pass_is_the_plain_one",
    "test_hmm.py::test_float32_is_stable_over_many_rows_and_states",
    "test_hmm.py::test_autoregressive_draws_are_recovered",
    "test_hmm.py::test_other_forms_are_the_recursions",
    "test_hmm.py::test_two_regimes_are_found_in_float32_too",
    "test_hmm.py::test_blocks_of_rows_change_nothing",
    "test_hmm.py::test_gradients_with_gaps_equal_differences",
    "test_hmm.py::test_left_to_right_starts_from_parts_in_time",
    "test_semi_markov.py::test_draws_are_recovered",
    "test_semi_markov.py::test_restricted_durations_are_exact",
    # Online EM of mixtures, topics and chains.
    "test_online.py::test_variational_posteriors_take_it_too",
    # The default accelerator in batches: `test_batch.py`.
    "test_acceleration.py::test_batches_restarts_and_vmap_give_the_single_fits",
    # Topics: planted topics, the published corpora and the bounds are usual tests.
    "test_lda.py::test_blocks_padding_and_order_change_nothing",
    "test_lda.py::test_what_topics_are_asked",
    # Bayesian mixtures: the bound, the number of components and the laws are usual tests.
    "test_bayesian.py::test_it_ranks_models_as_the_evidence_does",
    # Regressions: one component as a GLM, batches, labels and the published fits are usual tests.
    "test_regression.py::test_product_of_two_responses",
    "test_regression.py::test_more_coefficients_than_rows_of_a_component",
    # Gradients: every model against differences, rules and limits.
    "test_gradient_step.py::test_converged_means_a_vanishing_gradient",
    "test_gradient_rules.py::test_the_winner_of_restarts_is_differentiated",
    "test_gradient_rules.py::test_memory_does_not_grow_with_iterations",
    "test_gradient_rules.py::test_other_ways_under_vmap_and_on_a_batch",
    "test_gradient_slope.py::test_it_is_the_jacobian_of_the_map",
    # Errors of params: the published ones, and copies of units.
    "test_errors.py::test_rotations_of_loadings_have_no_error_but_covariances_have_that_of_a_normal",
    # The trace of a single climb and of a fleet.
    "test_trace.py::test_screened_restarts_are_one_climb",
    # Time stamps, outliers of other families.
    "test_real_data.py::test_digits_lost_before_the_fit_are_named",
    # Lanes and restarts of batches: `test_the_lanes_do_not_matter`, ragged fleets.
    "test_batch.py::test_an_accelerator_has_fewer_lanes_for_the_last_fits",
    "test_batch.py::test_restarts_of_a_batch_and_keys_by_place",
    # Bounds as criteria: `test_bayesian.py`.
    "test_select.py::test_a_bound_chooses_among_bayesian_mixtures",
    "test_variational.py::test_logits_reach_the_optimum_of_em_and_f_never_falls",
    "test_groups.py::test_stacks_of_several_lengths_are_one_stack",
    "test_missing.py::test_an_empty_row_changes_nothing",
    "test_large.py::test_a_large_step_is_differentiable_both_ways",
    "test_large.py::test_units_of_weight_zero_say_nothing",
    "test_command_line.py::test_one_column_has_two_structures",
    # One process with four devices: `test_on_four_devices`.
    "test_devices.py::test_two_processes",
    # An interrupt of a fit: `test_interrupt.py`.
    "test_slices.py::test_a_long_fit_can_be_stopped",
    # Restarts share their data in `test_a_waiting_data_set_costs_one_copy_of_itself` too.
    "test_memory.py::test_restarts_share_their_data",
    "test_large.py::test_data_standardised_in_every_pass_give_what_a_copy_gives",
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
