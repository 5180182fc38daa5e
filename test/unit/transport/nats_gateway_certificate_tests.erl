-module(nats_gateway_certificate_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("public_key/include/public_key.hrl").

-import(nats_gateway_certificate, [name/2]).

%% A certificate with this subject, one list of attributes for each RDN, and these other names.
certificate(Rdns, AlternativeNames) ->
    Key = public_key:generate_key({namedCurve, ?'secp256r1'}),
    #'ECPrivateKey'{publicKey = Point, parameters = Parameters} = Key,
    Algorithm = #'SignatureAlgorithm'{
        algorithm = ?'ecdsa-with-SHA256', parameters = asn1_NOVALUE
    },
    Subject =
        {rdnSequence, [
            [#'AttributeTypeAndValue'{type = Type, value = Value} || {Type, Value} <- Rdn]
         || Rdn <- Rdns
        ]},
    public_key:pkix_sign(
        #'OTPTBSCertificate'{
            version = v3,
            serialNumber = 1,
            signature = Algorithm,
            issuer = {rdnSequence, []},
            validity = #'Validity'{
                notBefore = {utcTime, "250101000000Z"}, notAfter = {utcTime, "350101000000Z"}
            },
            subject = Subject,
            subjectPublicKeyInfo = #'OTPSubjectPublicKeyInfo'{
                algorithm = #'PublicKeyAlgorithm'{
                    algorithm = ?'id-ecPublicKey', parameters = Parameters
                },
                subjectPublicKey = #'ECPoint'{point = Point}
            },
            extensions = [
                #'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = AlternativeNames}
             || AlternativeNames =/= []
            ]
        },
        Key
    ).

cn(Text) -> {?'id-at-commonName', {utf8String, Text}}.

common_names_test_() ->
    [
        ?_assertEqual(Expected, name(cn, certificate(Rdns, [])))
     || {Expected, Rdns} <- [
            {{ok, <<"anne">>}, [[cn(<<"anne">>)]]},
            {{ok, <<"anne">>}, [[cn(<<"anne">>), {?'id-at-organizationName', {utf8String, <<"A">>}}]]},
            {{ok, <<"a b,c">>}, [[cn(<<"a b,c">>)]]},
            {{ok, <<"müller"/utf8>>}, [[cn(<<"müller"/utf8>>)]]},
            {{ok, <<"anne">>}, [[{?'id-at-commonName', {printableString, "anne"}}]]},
            %% as EMQX has it
            {{ok, <<"anne,bert">>}, [[cn(<<"anne">>)], [cn(<<"bert">>)]]},
            {none, [[{?'id-at-organizationName', {utf8String, <<"A">>}}]]},
            {none, []}
        ]
    ].

%% RFC 2253, section 2
distinguished_names_test_() ->
    O = fun(Text) -> {?'id-at-organizationName', {utf8String, Text}} end,
    [
        ?_assertEqual({ok, Expected}, name(dn, certificate(Rdns, [])))
     || {Expected, Rdns} <- [
            {<<"CN=anne,O=A,C=DE">>, [
                [{?'id-at-countryName', "DE"}], [O(<<"A">>)], [cn(<<"anne">>)]
            ]},
            {<<"OU=Sales+CN=J. Smith,O=Widget Inc.">>, [
                [O(<<"Widget Inc.">>)],
                [{?'id-at-organizationalUnitName', {utf8String, <<"Sales">>}}, cn(<<"J. Smith">>)]
            ]},
            {<<"CN=L. Eagle,O=Sue\\, Grabbit and Runn">>, [
                [O(<<"Sue, Grabbit and Runn">>)], [cn(<<"L. Eagle">>)]
            ]},
            {<<"CN=Before\\0DAfter">>, [[cn(<<"Before\rAfter">>)]]},
            {<<"CN=Lu\\C4\\8Di\\C4\\87">>, [[cn(<<"Lu", 16#C4, 16#8D, "i", 16#C4, 16#87>>)]]},
            {<<"CN=\\ a b\\ ">>, [[cn(<<" a b ">>)]]},
            {<<"CN=\\ ">>, [[cn(<<" ">>)]]},
            {<<"CN=\\#a#">>, [[cn(<<"#a#">>)]]},
            {<<"CN=\\\"\\+\\,\\;\\<\\>\\\\=">>, [[cn(<<"\"+,;<>\\=">>)]]},
            {<<"DC=org">>, [[{?'id-domainComponent', "org"}]]},
            {<<"EMAILADDRESS=a@b.c">>, [[{?'id-emailAddress', "a@b.c"}]]}
        ]
    ] ++ [?_assertEqual(none, name(dn, certificate([], [])))].

alternative_names_test_() ->
    Names = [
        {iPAddress, <<127, 0, 0, 1>>},
        {dNSName, "first.example.org"},
        {dNSName, "second.example.org"},
        {rfc822Name, "anne@example.org"},
        {uniformResourceIdentifier, "spiffe://example.org/anne"}
    ],
    All = certificate([[cn(<<"anne">>)]], Names),
    Dns = certificate([], [{dNSName, "a"}]),
    None = certificate([[cn(<<"anne">>)]], []),
    [
        ?_assertEqual(Expected, name(Which, Certificate))
     || {Expected, Which, Certificate} <- [
            {{ok, <<"anne@example.org">>}, san_email, All},
            {{ok, <<"first.example.org">>}, san_dns, All},
            {{ok, <<"spiffe://example.org/anne">>}, san_uri, All},
            {none, san_email, Dns},
            {none, san_uri, Dns},
            {none, san_email, None},
            {none, san_dns, None}
        ]
    ].

no_certificate_has_no_name_test_() ->
    [
        ?_assertEqual(Expected, name(Which, Peercert))
     || {Expected, Which, Peercert} <- [
            {none, cn, undefined},
            {none, disabled, certificate([[cn(<<"anne">>)]], [])},
            %% of a proxy
            {{ok, <<"anne">>}, cn, [{pp2_ssl_client, true}, {pp2_ssl_cn, <<"anne">>}]},
            {{ok, <<"anne">>}, dn, [{pp2_ssl_cn, <<"anne">>}]},
            {none, san_dns, [{pp2_ssl_cn, <<"anne">>}]},
            {none, cn, [{pp2_ssl_client, true}]},
            {none, cn, [{pp2_ssl_cn, <<>>}]},
            {none, disabled, [{pp2_ssl_cn, <<"anne">>}]}
        ]
    ].
