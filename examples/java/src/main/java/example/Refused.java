package example;

/** A refusal with a stable code. The detail is for the log of this side only. */
final class Refused extends RuntimeException {
    private static final long serialVersionUID = 1;

    final String code;

    Refused(String code, String detail) {
        super(code + ": " + detail);
        this.code = code;
    }
}
