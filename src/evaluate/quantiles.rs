//! The two distributions that intervals need: the normal and Student's t.

/// The share of a standard normal below `x`, to 1e-15 absolute (Marsaglia, "Evaluating the normal distribution", 2004).
pub fn normal_cdf(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return f64::from(u8::from(x > 0.0));
    }
    let (mut sum, mut term, mut n) = (x, x, 1.0);
    while term.abs() > 1e-17 {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// The value that a standard normal stays below with probability `p`, in (0, 1), to 1e-15 relative (Wichura, algorithm AS 241,
/// PPND16, Applied Statistics 37, 1988).
pub fn normal_quantile(p: f64) -> f64 {
    let ratio = |x: f64, top: [f64; 8], bottom: [f64; 8]| {
        let polynomial = |c: [f64; 8]| c.iter().rev().fold(0.0, |sum, c| sum * x + c);
        polynomial(top) / polynomial(bottom)
    };
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        return q * ratio(0.180625 - q * q, CENTRE.0, CENTRE.1);
    }
    let r = (-p.min(1.0 - p).ln()).sqrt();
    let x = if r <= 5.0 { ratio(r - 1.6, MIDDLE.0, MIDDLE.1) } else { ratio(r - 5.0, TAIL.0, TAIL.1) };
    x.copysign(q)
}

type Coefficients = ([f64; 8], [f64; 8]);

#[allow(clippy::excessive_precision, reason = "as they are printed")]
const CENTRE: Coefficients = (
    [
        3.3871328727963666080,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ],
    [
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ],
);

#[allow(clippy::excessive_precision, reason = "as they are printed")]
const MIDDLE: Coefficients = (
    [
        1.42343711074968357734,
        4.63033784615654529590,
        5.76949722146069140550,
        3.64784832476320460504,
        1.27045825245236838258,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ],
    [
        1.0,
        2.05319162663775882187,
        1.67638483018380384940,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ],
);

#[allow(clippy::excessive_precision, reason = "as they are printed")]
const TAIL: Coefficients = (
    [
        6.65790464350110377720,
        5.46378491116411436990,
        1.78482653991729133580,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ],
    [
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ],
);

/// The value that the absolute value of Student's t with `degrees` of freedom (1 or more, whole or not) is above with
/// probability `two_tailed`, to 1e-3 relative below 3 degrees and 1e-5 above (Hill, algorithm 396, CACM 13, 1970).
pub fn t_quantile(two_tailed: f64, degrees: f64) -> f64 {
    use std::f64::consts::FRAC_PI_2;
    if degrees <= 1.0 {
        return 1.0 / (two_tailed * FRAC_PI_2).tan();
    }
    if (degrees - 2.0).abs() < 1e-12 {
        return (2.0 / (two_tailed * (2.0 - two_tailed)) - 2.0).sqrt();
    }
    let n = degrees;
    let a = 1.0 / (n - 0.5);
    let b = 48.0 / (a * a);
    let mut c = ((20_700.0 * a / b - 98.0) * a - 16.0) * a + 96.36;
    let d = ((94.5 / (b + c) - 3.0) / b + 1.0) * (a * FRAC_PI_2).sqrt() * n;
    let mut y = (d * two_tailed).powf(2.0 / n);
    if y > 0.05 + a {
        let x = normal_quantile(0.5 * two_tailed);
        y = x * x;
        if n < 5.0 {
            c += 0.3 * (n - 4.5) * (x + 0.6);
        }
        c += (((0.05 * d * x - 5.0) * x - 7.0) * x - 2.0) * x + b;
        y = (((((0.4 * y + 6.3) * y + 36.0) * y + 94.5) / c - y - 3.0) / b + 1.0) * x;
        y = (a * y * y).exp_m1();
    } else {
        let correction = 1.0 / (((n + 6.0) / (n * y) - 0.089 * d - 0.822) * (n + 2.0) * 3.0);
        y = ((correction + 0.5 / (n + 4.0)) * y - 1.0) * (n + 1.0) / (n + 2.0) + 1.0 / y;
    }
    (n * y).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From scripts/parity/statistics_goldens.py: scipy.
    fn goldens() -> serde_json::Value {
        serde_json::from_str(include_str!("../../tests/parity/statistics.json")).unwrap()
    }

    #[test]
    fn the_normal_is_that_of_scipy() {
        let rows: Vec<(f64, f64)> = serde_json::from_value(goldens()["normal"].clone()).unwrap();
        assert_eq!(rows.len(), 9);
        for (x, p) in rows {
            assert!((normal_cdf(x) - p).abs() < 1e-15, "cdf({x}) = {}, expected {p}", normal_cdf(x));
            assert!((normal_quantile(p) - x).abs() < 1e-12 * x.abs().max(1.0), "quantile({p}) = {}", normal_quantile(p));
        }
        assert_eq!([normal_cdf(-40.0), normal_cdf(40.0)], [0.0, 1.0]);
    }

    #[test]
    fn students_t_is_that_of_scipy() {
        let rows: Vec<(f64, f64, f64)> = serde_json::from_value(goldens()["t"].clone()).unwrap();
        assert_eq!(rows.len(), 40);
        for (two_tailed, degrees, t) in rows {
            let off = t_quantile(two_tailed, degrees) / t - 1.0;
            let allowed = if degrees < 3.0 { 1e-3 } else { 1e-5 };
            assert!(off.abs() < allowed, "t({two_tailed}, {degrees}) = {}, expected {t}", t_quantile(two_tailed, degrees));
        }
    }
}
