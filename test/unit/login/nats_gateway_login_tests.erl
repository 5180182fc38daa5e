-module(nats_gateway_login_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_credentials, [pair/1, key/1, sign/2, user/3, account/3]).

-define(NONCE, <<"abcdefghijklmno">>).
-define(RULES, #{
    publish => #{allow => [<<"a">>], deny => []},
    subscribe => #{allow => all, deny => []},
    allow_responses => undefined
}).

facts() ->
    #{
        certified => false,
        nonce => ?NONCE,
        peerhost => {127, 0, 0, 1},
        transport => tcp,
        now => erlang:system_time(millisecond),
        offset => 0
    }.

secret(Text) ->
    {ok, Secret} = nats_gateway_login:secret(Text),
    Secret.

token(Text) -> {token, secret(Text)}.

person(Name, Password) ->
    #{user => Name, password => secret(Password), nkey => undefined, rules => ?RULES}.

machine(Key) -> #{user => undefined, password => undefined, nkey => Key, rules => ?RULES}.

login(Methods) -> login(Methods, #{}).

login(Methods, Spec) ->
    {ok, Login} = nats_gateway_login:new(Spec#{methods => Methods}),
    Login.

ask(Connect, Login) -> ask(Connect, #{}, Login).

%% In one word.
ask(Connect, Facts, Login) ->
    verdict(nats_gateway_login:authenticate(Login, Connect, maps:merge(facts(), Facts))).

verdict({ok, #{method := Method, username := Username}}) ->
    {Method, Username};
verdict({error, {_, Reason}}) ->
    Reason;
verdict(ignore) ->
    ignore;
verdict({verify, {Given, Hash}, IfRight, IfWrong}) ->
    case nats_gateway_nif:bcrypt_verify(Given, Hash) of
        true -> verdict(IfRight);
        false -> verdict(IfWrong)
    end.

nothing_configured_test() ->
    Login = login([]),
    ?assertEqual(nats_gateway_login:none(), Login),
    ?assertEqual(ignore, ask(#{user => <<"u">>}, Login)),
    ?assertEqual(undefined, nats_gateway_login:nonce(Login)),
    ?assertNot(nats_gateway_login:auth_required(Login, false)),
    ?assert(nats_gateway_login:auth_required(Login, true)).

token_test() ->
    Login = login([token(<<"t">>)]),
    ?assertEqual({token, <<"token">>}, ask(#{auth_token => <<"t">>}, Login)),
    ?assertEqual(wrong_token, ask(#{auth_token => <<"T">>}, Login)),
    ?assertEqual(wrong_token, ask(#{auth_token => <<"t">>, user => <<"u">>}, login([token(<<"x">>)]))),
    ?assertEqual(no_token, ask(#{auth_token => <<>>}, Login)),
    ?assertEqual(no_token, ask(#{user => <<"t">>, pass => <<"t">>}, Login)),
    ?assert(nats_gateway_login:auth_required(Login, false)),
    ?assertEqual(undefined, nats_gateway_login:nonce(Login)).

%% Of `w0rd', cost 4.
bcrypt_test() ->
    Hash = <<"$2a$04$JUIzNcqxj1tTtswnN1a6rOwYU7ysPtDI2t2MvR0L5NgENKQzHf/9y">>,
    [
        begin
            Login = login([token(<<"$2", Version, (binary:part(Hash, 3, 57))/binary>>)]),
            ?assertEqual({token, <<"token">>}, ask(#{auth_token => <<"w0rd">>}, Login)),
            ?assertEqual(wrong_token, ask(#{auth_token => <<"word">>}, Login)),
            ?assertEqual(wrong_token, ask(#{auth_token => Hash}, Login)),
            %% longer than bcrypt looks at, and with a NUL
            ?assertEqual(wrong_token, ask(#{auth_token => binary:copy(<<"w">>, 5000)}, Login)),
            ?assertEqual(wrong_token, ask(#{auth_token => <<"w0rd", 0>>}, Login))
        end
     || Version <- "aby"
    ].

what_looks_like_a_hash_must_be_one_test_() ->
    Rest = "$JUIzNcqxj1tTtswnN1a6rOwYU7ysPtDI2t2MvR0L5NgENKQzHf/9y",
    [
        ?_assertEqual({Text, Expected}, {Text, nats_gateway_login:secret(iolist_to_binary(Text))})
     || {Text, Expected} <- [
            {"$2a$", {error, bad_hash}},
            {"$2b$10$short", {error, bad_hash}},
            {"$2y$xx" ++ Rest, {error, bad_hash}},
            {"$2a$17" ++ Rest, {error, hash_too_slow}},
            {"$2a$16" ++ Rest, {ok, {bcrypt, list_to_binary("$2a$16" ++ Rest)}}}
        ]
    ] ++ [?_assertMatch({ok, {sha256, _}}, nats_gateway_login:secret(<<"$2c$10$">>))].

%% What the file holds is taken without the blanks and the end of line around it.
secret_in_a_file_test() ->
    Hash = <<"$2a$04$JUIzNcqxj1tTtswnN1a6rOwYU7ysPtDI2t2MvR0L5NgENKQzHf/9y">>,
    Longest = binary:copy(<<"x">>, 65536),
    Plain = fun nats_gateway_login:secret/1,
    nats_gateway_test_directory:in(fun(Path) ->
        OfFile = fun(Name) -> nats_gateway_login:secret(iolist_to_binary(["file://", Path(Name)])) end,
        [
            begin
                ok = file:write_file(Path("secret"), Content),
                ?assertEqual({Content, Expected}, {Content, OfFile("secret")})
            end
         || {Content, Expected} <- [
                {<<" t k\r\n\n">>, Plain(<<"t k">>)},
                {<<Hash/binary, "\n">>, {ok, {bcrypt, Hash}}},
                {Longest, Plain(Longest)},
                {<<Longest/binary, "x">>, {error, {file, efbig}}},
                {<<"$2a$04$x\n">>, {error, bad_hash}},
                {<<" \n">>, {error, {file, empty}}},
                {<<>>, {error, {file, empty}}},
                %% not text: a token of these bytes
                {<<255, "\n">>, Plain(<<255>>)}
            ]
        ],
        ?assertEqual({error, {file, enoent}}, OfFile("none")),
        ?assertEqual({error, {file, eisdir}}, OfFile("")),
        ?assertEqual({error, {file, badarg}}, OfFile([0])),
        %% a file names no other one
        Other = iolist_to_binary(["file://", Path("other")]),
        ok = file:write_file(Path("secret"), Other),
        ?assertMatch({ok, {sha256, _}}, OfFile("secret"))
    end),
    %% it would be relative to whatever directory the node was started in
    [
        ?assertEqual({error, {file, relative}}, nats_gateway_login:secret(Text))
     || Text <- [<<"file://">>, <<"file://token">>, <<"file://./token">>]
    ].

%% Not even a dump of the settings shows them.
secrets_are_not_kept_test() ->
    Secret = <<"very-secret">>,
    Login = login([token(Secret), {users, [person(<<"u">>, Secret)]}]),
    ?assertEqual(nomatch, binary:match(term_to_binary(Login), Secret)).

users_test() ->
    Login = login([{users, [person(<<"ann">>, <<"p">>), person(<<"bob">>, <<"q">>)]}]),
    ?assertEqual({user, <<"ann">>}, ask(#{user => <<"ann">>, pass => <<"p">>}, Login)),
    ?assertEqual({user, <<"bob">>}, ask(#{user => <<"bob">>, pass => <<"q">>}, Login)),
    ?assertEqual(wrong_password, ask(#{user => <<"ann">>, pass => <<"q">>}, Login)),
    ?assertEqual(wrong_password, ask(#{user => <<"ann">>}, Login)),
    ?assertEqual(unknown_user, ask(#{user => <<"cat">>, pass => <<"p">>}, Login)),
    ?assertEqual(no_user, ask(#{pass => <<"p">>}, Login)),
    {ok, #{rules := Rules}} = nats_gateway_login:authenticate(
        Login, #{user => <<"ann">>, pass => <<"p">>}, facts()
    ),
    ?assertEqual(?RULES, Rules).

%% The name is that of the certificate. Who has a password as well needs both.
a_certified_user_test() ->
    NoPassword = (person(<<"ann">>, <<"p">>))#{password := undefined},
    Login = login([{users, [NoPassword, person(<<"bob">>, <<"q">>)]}]),
    Certified = #{certified => true},
    ?assertEqual({certificate, <<"ann">>}, ask(#{user => <<"ann">>}, Certified, Login)),
    ?assertEqual({user, <<"bob">>}, ask(#{user => <<"bob">>, pass => <<"q">>}, Certified, Login)),
    ?assertEqual(wrong_password, ask(#{user => <<"bob">>, pass => <<"x">>}, Certified, Login)),
    ?assertEqual(wrong_password, ask(#{user => <<"bob">>}, Certified, Login)),
    ?assertEqual(unknown_user, ask(#{user => <<"cat">>}, Certified, Login)),
    ?assertEqual(wrong_password, ask(#{user => <<"ann">>, pass => <<>>}, Login)).

nkeys_test_() ->
    [Pair, Other] = [pair(user), pair(user)],
    Key = key(Pair),
    Good = sign(?NONCE, Pair),
    [
        ?_assertEqual({Expected, Connect}, {ask(Connect, Facts, Login), Connect})
     || Login <- [login([{nkey, [Key]}]), login([{users, [machine(Key)]}])],
        {Expected, Connect, Facts} <- [
            {{nkey, Key}, #{nkey => Key, sig => Good}, #{}},
            {{nkey, Key}, #{nkey => string:lowercase(Key), sig => Good}, #{}},
            {{nkey, Key}, #{nkey => Key, sig => <<Good/binary, "==">>}, #{}},
            {no_signature, #{nkey => Key}, #{}},
            {no_signature, #{nkey => Key, sig => <<>>}, #{}},
            {no_signature, #{nkey => Key, sig => Good}, #{nonce => undefined}},
            {bad_signature, #{nkey => Key, sig => sign(?NONCE, Other)}, #{}},
            {bad_signature, #{nkey => Key, sig => sign(<<"another">>, Pair)}, #{}},
            {bad_signature, #{nkey => Key, sig => <<"???">>}, #{}},
            {unknown_nkey, #{nkey => key(Other), sig => sign(?NONCE, Other)}, #{}}
        ]
    ].

nonces_test() ->
    Login = login([{nkey, [key(pair(user))]}]),
    Nonces = [nats_gateway_login:nonce(Login) || _ <- lists:seq(1, 100)],
    ?assertEqual(100, length(lists:usort(Nonces))),
    [?assertEqual(match, re:run(N, "^[A-Za-z0-9_-]{15}$", [{capture, none}])) || N <- Nonces],
    ?assertNotEqual(undefined, nats_gateway_login:nonce(login([{users, [machine(<<"U">>)]}]))),
    ?assertEqual(undefined, nats_gateway_login:nonce(login([{users, [person(<<"a">>, <<"b">>)]}]))).

no_auth_user_test() ->
    [Pair, Key] = [pair(user), key(pair(user))],
    Users = [person(<<"guest">>, <<"p">>), machine(Key)],
    Login = login([{users, Users}], #{no_auth_user => <<"guest">>}),
    ?assertEqual({no_auth_user, <<"guest">>}, ask(#{}, Login)),
    ?assertEqual({no_auth_user, <<"guest">>}, ask(#{user => <<>>, pass => <<>>, name => <<"x">>}, Login)),
    ?assertNot(nats_gateway_login:auth_required(Login, true)),
    [
        ?assert(is_atom(ask(Connect, Login)))
     || Connect <- [
            #{user => <<"guest">>},
            #{pass => <<"p">>},
            #{auth_token => <<"t">>},
            #{nkey => key(Pair)}
        ]
    ],
    %% what no method takes is nothing
    ?assertEqual({no_auth_user, <<"guest">>}, ask(#{jwt => <<"j">>, sig => <<"s">>}, Login)),
    People = login([{users, [person(<<"guest">>, <<"p">>)]}], #{no_auth_user => <<"guest">>}),
    ?assertEqual({no_auth_user, <<"guest">>}, ask(#{nkey => key(Pair), sig => <<"s">>}, People)),
    ByKey = login([{users, Users}], #{no_auth_user => Key}),
    ?assertEqual({no_auth_user, Key}, ask(#{}, ByKey)),
    %% not without a signature if it says so itself
    ?assertEqual(no_signature, ask(#{nkey => Key}, ByKey)),
    ?assertEqual(
        {error, no_such_user},
        nats_gateway_login:new(#{methods => [{users, Users}], no_auth_user => <<"ghost">>})
    ),
    ?assertEqual(
        {error, no_such_user}, nats_gateway_login:new(#{methods => [], no_auth_user => <<"ghost">>})
    ).

%% -------------------------------------------------------------------------------------------
%% Order and fall-through, as EMQX's

jwt_world() ->
    [Operator, Account, User] = [pair(operator), pair(account), pair(user)],
    {ok, Trust} = nats_gateway_jwt:trust(
        [key(Operator)], [{undefined, account(Account, #{}, Operator)}]
    ),
    {{jwt, Trust}, User, #{jwt => user(User, #{}, Account), sig => sign(?NONCE, User)}}.

fall_through_test_() ->
    {Jwt, User, ByJwt} = jwt_world(),
    Listed = pair(user),
    NKey = {nkey, [key(Listed)]},
    Token = token(<<"t">>),
    Users = {users, [person(<<"ann">>, <<"p">>)]},
    Nothing = #{},
    ByToken = #{auth_token => <<"t">>},
    ByNKey = #{nkey => key(Listed), sig => sign(?NONCE, Listed)},
    ByUser = #{user => <<"ann">>, pass => <<"p">>},
    Unknown = #{user => <<"x">>, pass => <<"y">>},
    Name = key(User),
    [
        ?_assertEqual(
            {N, Expected}, {N, ask(Connect, login(Methods, #{falls_through => FallsThrough}))}
        )
     || {N, Methods, FallsThrough, Connect, Expected} <- [
            %% nothing is brought: the last one refuses, unless the broker follows
            {1, [Token, NKey, Jwt], false, Nothing, no_jwt},
            {2, [Jwt, NKey, Token], false, Nothing, no_token},
            {3, [Token, NKey, Jwt], true, Nothing, ignore},
            {4, [Token], true, Unknown, ignore},
            {5, [Token], false, Unknown, no_token},
            %% wherever it stands, what is brought is looked at
            {6, [Token, NKey, Jwt], false, ByToken, {token, <<"token">>}},
            {7, [Jwt, NKey, Token], false, ByToken, {token, <<"token">>}},
            {8, [Token, Jwt, NKey], false, ByNKey, {nkey, key(Listed)}},
            {9, [NKey, Token, Jwt], false, ByJwt, {jwt, Name}},
            %% what is wrong is not passed on
            {10, [Token, NKey], true, #{auth_token => <<"x">>}, wrong_token},
            {11, [Token, NKey], true, maps:merge(ByNKey, #{auth_token => <<"x">>}), wrong_token},
            {12, [NKey, Token], true, maps:merge(ByNKey, #{auth_token => <<"x">>}), {nkey, key(Listed)}},
            {13, [Jwt, Token], true, maps:merge(ByToken, #{jwt => <<"x">>}), {bad_jwt, <<"not a NATS JWT">>}},
            {14, [NKey], true, ByJwt#{nkey => Name}, unknown_nkey},
            {15, [NKey, Token], false, ByToken#{nkey => Name}, unknown_nkey},
            %% an NKey that comes with a JWT, as some clients send it
            {16, [NKey, Jwt], false, ByJwt#{nkey => Name}, {jwt, Name}},
            {17, [NKey, Token, Jwt], false, ByJwt#{nkey => Name}, {jwt, Name}},
            {18, [Jwt, NKey], false, ByJwt#{nkey => Name}, {jwt, Name}},
            {19, [NKey, Jwt], false, maps:merge(ByJwt, ByNKey), {nkey, key(Listed)}},
            {20, [NKey, Jwt], true, #{nkey => Name, jwt => <<"x">>}, {bad_jwt, <<"not a NATS JWT">>}},
            %% users know their names
            {21, [Users], true, ByUser, {user, <<"ann">>}},
            {22, [Users], true, Unknown, ignore},
            {23, [Users], false, Unknown, unknown_user},
            {24, [Users], true, ByUser#{pass := <<"x">>}, wrong_password},
            {25, [Users, Token], false, maps:merge(Unknown, ByToken), {token, <<"token">>}},
            {26, [Users, Token], false, Unknown, no_token},
            {27, [Users, Token], false, maps:merge(ByUser#{pass := <<"x">>}, ByToken), wrong_password}
        ]
    ].
