//! Metrics of predictions: accuracy, F1, Matthews, Pearson and Spearman, as scikit-learn and SciPy define them.

use super::Metric;

/// The share of correct predictions.
pub fn accuracy(predicted: &[usize], labels: &[usize]) -> f64 {
    let right = predicted.iter().zip(labels).filter(|(p, l)| p == l).count();
    right as f64 / labels.len().max(1) as f64
}

/// F1 of label 1 if there are two labels (as in GLUE), otherwise the mean F1 over the labels that occur or are predicted.
pub fn f1(predicted: &[usize], labels: &[usize], classes: usize) -> f64 {
    let of = |class: usize| {
        let count = |test: &dyn Fn(bool, bool) -> bool| {
            predicted
                .iter()
                .zip(labels)
                .filter(|(p, l)| test(**p == class, **l == class))
                .count() as f64
        };
        let right = count(&|p, l| p && l);
        let wrong = count(&|p, l| p != l);
        (right + wrong > 0.0).then(|| 2.0 * right / (2.0 * right + wrong))
    };
    if classes == 2 {
        return of(1).unwrap_or(0.0);
    }
    let present: Vec<f64> = (0..classes).filter_map(of).collect();
    present.iter().sum::<f64>() / present.len().max(1) as f64
}

/// Matthews' correlation coefficient for any number of labels (Gorodkin 2004); 0 where it is not
/// defined.
pub fn matthews(predicted: &[usize], labels: &[usize], classes: usize) -> f64 {
    let total = labels.len() as f64;
    let right = predicted.iter().zip(labels).filter(|(p, l)| p == l).count() as f64;
    let count =
        |values: &[usize], class: usize| values.iter().filter(|v| **v == class).count() as f64;
    let (mut both, mut squares_p, mut squares_l) = (0.0, 0.0, 0.0);
    for class in 0..classes {
        let (p, l) = (count(predicted, class), count(labels, class));
        both += p * l;
        squares_p += p * p;
        squares_l += l * l;
    }
    let root = ((total * total - squares_p) * (total * total - squares_l)).sqrt();
    if root == 0.0 {
        0.0
    } else {
        (right * total - both) / root
    }
}

/// Pearson's correlation; 0 where one side is constant.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let count = x.len().max(1) as f64;
    let (mx, my) = (x.iter().sum::<f64>() / count, y.iter().sum::<f64>() / count);
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        xy += (x - mx) * (y - my);
        xx += (x - mx) * (x - mx);
        yy += (y - my) * (y - my);
    }
    let root = (xx * yy).sqrt();
    if root == 0.0 {
        0.0
    } else {
        xy / root
    }
}

/// Spearman's rank correlation; ties get their mean rank. 0 where one side is constant.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    pearson(&ranks(x), &ranks(y))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let value = values[order[start]];
        let end = order[start..]
            .iter()
            .position(|i| values[*i] != value)
            .map_or(order.len(), |n| start + n);
        let mean = (start + end - 1) as f64 / 2.0 + 1.0;
        order[start..end].iter().for_each(|&i| ranks[i] = mean);
        start = end;
    }
    ranks
}

/// All metrics of a classification, except the loss.
pub fn classification(predicted: &[usize], labels: &[usize], classes: usize) -> Vec<(Metric, f64)> {
    vec![
        (Metric::Accuracy, accuracy(predicted, labels)),
        (Metric::F1, f1(predicted, labels, classes)),
        (Metric::Matthews, matthews(predicted, labels, classes)),
    ]
}

/// The metrics of examples with several labels each, except the loss: F1 over all labels together (micro), its mean over
/// labels, and the share of examples whose labels are all right. A label that neither occurs nor is predicted has F1 0.
pub fn several(sets: &[Vec<(bool, bool)>]) -> Vec<(Metric, f64)> {
    let labels = sets.first().map_or(0, Vec::len);
    let f1_of = |pairs: &mut dyn Iterator<Item = (bool, bool)>| {
        let (mut right, mut wrong) = (0.0, 0.0);
        for (predicted, has) in pairs {
            right += f64::from(u8::from(predicted && has));
            wrong += f64::from(u8::from(predicted != has));
        }
        match right + wrong == 0.0 {
            true => 0.0,
            false => 2.0 * right / (2.0 * right + wrong),
        }
    };
    let each = (0..labels).map(|label| f1_of(&mut sets.iter().map(|set| set[label])));
    let each: f64 = each.sum();
    let whole = |set: &&Vec<(bool, bool)>| set.iter().all(|(predicted, has)| predicted == has);
    vec![
        (Metric::F1, f1_of(&mut sets.iter().flatten().copied())),
        (Metric::MacroF1, each / labels.max(1) as f64),
        (
            Metric::Accuracy,
            sets.iter().filter(whole).count() as f64 / sets.len().max(1) as f64,
        ),
    ]
}

/// All metrics of a regression, except the loss.
pub fn regression(predicted: &[f64], targets: &[f64]) -> Vec<(Metric, f64)> {
    vec![
        (Metric::Pearson, pearson(predicted, targets)),
        (Metric::Spearman, spearman(predicted, targets)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    // Literals printed by scikit-learn 1.9 and SciPy 1.17:
    // p = [0,1,2,1,0,2,1,1], l = [0,1,1,1,0,2,2,0]
    // f1_score(l, p, average="macro"), matthews_corrcoef(l, p)
    #[test]
    fn classification_metrics_are_those_of_scikit_learn() {
        let (p, l) = ([0, 1, 2, 1, 0, 2, 1, 1], [0, 1, 1, 1, 0, 2, 2, 0]);
        assert!((accuracy(&p, &l) - 0.625).abs() < 1e-12);
        assert!((f1(&p, &l, 3) - 0.623_809_523_809_523_8).abs() < 1e-9);
        assert!((matthews(&p, &l, 3) - 0.439_155_032_826_839_93).abs() < 1e-9);
        // f1_score([0, 2, 4], [0, 2, 2], average="macro"): labels 1 and 3 do not occur
        assert!((f1(&[0, 2, 2], &[0, 2, 4], 5) - 0.555_555_555_555_555_6).abs() < 1e-12);
        // f1_score([0,1,1,0], [0,1,0,1]), matthews_corrcoef of the same
        assert!((f1(&[0, 1, 0, 1], &[0, 1, 1, 0], 2) - 0.5).abs() < 1e-12);
        assert!(matthews(&[0, 1, 0, 1], &[0, 1, 1, 0], 2).abs() < 1e-12);
        assert_eq!(matthews(&[1, 1], &[1, 1], 2), 0.0);
    }

    // By scikit-learn 1.9, of gold [[1,0,1],[0,1,0],[1,1,0],[0,0,0]] and predicted [[1,0,0],[0,1,0],[1,0,0],[0,1,0]]:
    // f1_score(average="micro"), f1_score(average="macro", zero_division=0), accuracy_score
    #[test]
    fn metrics_of_several_labels_are_those_of_scikit_learn() {
        let gold = [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]];
        let predicted = [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]];
        let set = |(p, g): (&[i32; 3], &[i32; 3])| {
            let pairs = p.iter().zip(g);
            pairs.map(|(p, g)| (*p == 1, *g == 1)).collect::<Vec<_>>()
        };
        let sets: Vec<Vec<(bool, bool)>> = predicted.iter().zip(&gold).map(set).collect();
        let found = several(&sets);
        let expected = [2.0 / 3.0, 0.5, 0.25];
        for ((metric, value), expected) in found.into_iter().zip(expected) {
            assert!((value - expected).abs() < 1e-9, "{metric:?} {value}");
        }
    }

    // pearsonr and spearmanr of x = [1,2,2,4,5.5], y = [2,1,3,5,4]
    #[test]
    fn correlations_are_those_of_scipy() {
        let (x, y) = ([1.0, 2.0, 2.0, 4.0, 5.5], [2.0, 1.0, 3.0, 5.0, 4.0]);
        assert!((pearson(&x, &y) - 0.739_830_037_811_715_9).abs() < 1e-9);
        assert!((spearman(&x, &y) - 0.718_184_846_459_607_9).abs() < 1e-9);
        assert_eq!(pearson(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    }
}
