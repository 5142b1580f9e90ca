package authn

// Challenge is what the WWW-Authenticate of a refusal says beside its code, as
// RFC 9449 (sections 7.1 and 7.2) has it. The zero value is a plain Bearer
// challenge.
type Challenge struct {
	// Scheme is the one that the token came with.
	Scheme Scheme
	// BadProof says that the proof is what is wrong, and not the token. That a
	// token is bound to another key is the token's fault.
	BadProof bool
	// Algorithms are those that proofs may be signed with, separated by spaces.
	// They are empty where the client has no use for a proof.
	Algorithms string
}
