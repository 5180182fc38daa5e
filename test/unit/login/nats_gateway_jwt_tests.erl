-module(nats_gateway_jwt_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_credentials, [pair/1, key/1, sign/2, old_jwt/4, user/3, account/3, operator/2]).

-define(NOW, 1700000000).
-define(NONCE, <<"abcdefghijklmno">>).

facts() ->
    #{
        certified => false,
        nonce => ?NONCE,
        peerhost => {127, 0, 0, 1},
        transport => tcp,
        now => ?NOW * 1000,
        offset => 0
    }.

%% One operator, one account of these claims, one user.
world() -> world(#{}).

world(Account) ->
    World = #{operator => pair(operator), account => pair(account), user => pair(user)},
    trusting(World, Account).

trusting(World = #{operator := Operator, account := AccountPair}, Account) ->
    {ok, Trust} = nats_gateway_jwt:trust(
        [key(Operator)], [{undefined, account(AccountPair, Account, Operator)}]
    ),
    World#{trust => Trust}.

login(Claims, World) -> login(Claims, #{}, World).

login(Claims, Facts, World = #{account := Account}) -> login(Claims, Facts, Account, World).

login(Claims, Facts, Issuer, #{user := User, trust := Trust}) ->
    nats_gateway_jwt:login(
        user(User, Claims, Issuer), sign(?NONCE, User), {Trust, maps:merge(facts(), Facts)}
    ).

top(Claims, Nats) -> Claims#{nats => nats_gateway_credentials:nats(Nats)}.

%% -------------------------------------------------------------------------------------------

an_identity_test() ->
    World = #{user := User, account := Account} = world(#{name => <<"x">>}),
    {ok, Identity = #{jwt := Jwt}} = login(top(#{name => <<"ann">>}, #{tags => [<<"t:1">>]}), World),
    ?assertMatch({ok, #{kind := user, name := <<"ann">>}}, nats_gateway_nif:jwt_decode(Jwt)),
    ?assertEqual(
        #{
            jwt => Jwt,
            issuer_key => key(Account),
            tags => [<<"t:1">>],
            username => key(User),
            nkey => key(User),
            name => <<"ann">>,
            account => key(Account),
            account_name => <<>>,
            rules => #{
                publish => #{allow => all, deny => []},
                subscribe => #{allow => all, deny => []},
                allow_responses => undefined
            },
            max_payload => infinity,
            max_subscriptions => infinity,
            max_account_connections => infinity,
            zero_claims => [],
            expires => infinity
        },
        Identity
    ).

times_test_() ->
    World = world(),
    Expired = fun(Exp, Ms) ->
        login(top(#{exp => Exp}, #{}), #{now => ?NOW * 1000 + Ms}, World)
    end,
    [
        ?_assertEqual({error, jwt_expired}, Expired(?NOW - 1, 0)),
        %% as nats-server: until the end of that second, and then it expires at once
        ?_assertMatch({ok, #{expires := {0, user_authentication_expired}}}, Expired(?NOW, 0)),
        ?_assertMatch({ok, #{expires := {0, _}}}, Expired(?NOW, 999)),
        ?_assertMatch({ok, #{expires := {1000, user_authentication_expired}}}, Expired(?NOW + 1, 0)),
        ?_assertMatch({ok, #{expires := {1, _}}}, Expired(?NOW + 1, 999)),
        ?_assertMatch({ok, #{expires := infinity}}, Expired(0, 0)),
        ?_assertEqual({error, jwt_expired}, Expired(-1, 0)),
        ?_assertMatch({ok, _}, login(top(#{nbf => ?NOW}, #{}), World)),
        ?_assertEqual({error, jwt_not_yet_valid}, login(top(#{nbf => ?NOW + 1}, #{}), World))
    ].

times_of_the_account_test() ->
    World = world(),
    With = fun(Claims) -> login(#{}, trusting(World, Claims#{nats => #{}})) end,
    ?assertEqual({error, account_jwt_expired}, With(#{exp => ?NOW - 1})),
    ?assertEqual({error, account_jwt_expired}, With(#{exp => -1})),
    ?assertEqual({error, account_jwt_not_yet_valid}, With(#{nbf => ?NOW + 1})),
    ?assertMatch({ok, #{expires := {5000, account_authentication_expired}}}, With(#{exp => ?NOW + 5})),
    %% the first that comes
    Both = trusting(World, #{exp => ?NOW + 5, nats => #{}}),
    ?assertMatch(
        {ok, #{expires := {4000, user_authentication_expired}}},
        login(top(#{exp => ?NOW + 4}, #{}), Both)
    ).

hours_test() ->
    World = world(),
    %% 22:13:20 UTC
    Hours = fun(Start, End, Facts) ->
        login(#{times => [#{start => Start, 'end' => End}]}, Facts, World)
    end,
    ?assertMatch(
        {ok, #{expires := {400000, user_authentication_expired}}},
        Hours(<<"22:00:00">>, <<"22:20:00">>, #{})
    ),
    ?assertEqual({error, outside_of_hours}, Hours(<<"22:14:00">>, <<"22:20:00">>, #{})),
    ?assertMatch({ok, _}, Hours(<<"23:14:00">>, <<"23:20:00">>, #{offset => 3700})),
    ?assertMatch(
        {ok, _},
        login(
            #{
                times => [#{start => <<"07:00:00">>, 'end' => <<"07:20:00">>}],
                times_location => <<"Asia/Tokyo">>
            },
            World
        )
    ).

limits_test_() ->
    [
        ?_assertMatch(
            {ok, #{max_payload := Expected, max_subscriptions := Expected}},
            login(
                #{payload => OfUser, subs => OfUser},
                world(#{limits => #{payload => OfAccount, subs => OfAccount}})
            )
        )
     || {OfUser, OfAccount, Expected} <- [
            {-1, -1, infinity}, {5, -1, 5}, {-1, 5, 5}, {5, 6, 5}, {6, 5, 5}, {0, -1, 0}, {-1, 0, 0}
        ]
    ].

limit_of_the_accounts_connections_test_() ->
    [
        ?_assertMatch(
            {ok, #{max_account_connections := Expected}}, login(#{}, world(#{limits => #{conn => Limit}}))
        )
     || {Limit, Expected} <- [{-1, infinity}, {0, 0}, {1, 1}, {null, 0}]
    ].

%% What is not there is 0, in the JWT of a user as in nats-server.
absent_limits_allow_nothing_test() ->
    World = #{account := Account, user := User, trust := Trust} = world(),
    Jwt = user(User, #{nats => #{}}, Account),
    ?assertMatch(
        {ok, #{
            max_payload := 0, max_subscriptions := 0, zero_claims := [<<"nats.subs of the user">>]
        }},
        nats_gateway_jwt:login(Jwt, sign(?NONCE, User), {Trust, facts()})
    ),
    _ = World.

zero_claims_are_named_test() ->
    Zero = world(#{limits => #{conn => null, subs => 0}}),
    ?assertMatch(
        {ok, #{
            zero_claims := [
                <<"nats.limits.conn of the account">>, <<"nats.limits.subs of the account">>
            ]
        }},
        login(#{}, Zero)
    ),
    {{ok, #{zero_claims := OfTemplate}}, _} = scoped(#{subs => 0}, #{}),
    ?assertEqual([<<"nats.signing_keys.template.subs of the account">>], OfTemplate).

%% Beside `nats', as EMQX's own gateway reads them; they do not take the place of the account's.
outer_permissions_test() ->
    World = world(#{nats => #{default_permissions => #{pub => #{deny => [<<"d">>]}}}}),
    Permissions = #{publish => #{allow => [<<"a.>">>]}, sub => #{deny => [<<"s">>]}},
    ?assertMatch(
        {ok, #{
            rules := #{
                publish := #{allow := all, deny := [<<"d">>]},
                subscribe := #{allow := all, deny := []},
                outer := #{
                    publish := #{allow := [<<"a.>">>], deny := []},
                    subscribe := #{allow := all, deny := [<<"s">>]},
                    allow_responses := undefined
                }
            }
        }},
        login(top(#{permissions => Permissions}, #{}), World)
    ),
    {ok, #{rules := Rules}} = login(top(#{permissions => #{}}, #{}), World),
    ?assertNot(is_map_key(outer, Rules)),
    ?assertMatch(
        {error, {bad_jwt, <<"the claim permissions may have ", _/binary>>}},
        login(top(#{permissions => [<<"a">>]}, #{}), World)
    ).

rules_test() ->
    {ok, #{rules := Rules}} = login(
        #{
            pub => #{allow => [<<"a">>], deny => [<<"b">>]},
            sub => #{deny => [<<"c q">>]},
            resp => #{max => 3, ttl => 1500000}
        },
        world()
    ),
    ?assertEqual(
        #{
            publish => #{allow => [<<"a">>], deny => [<<"b">>]},
            subscribe => #{allow => all, deny => [<<"c q">>]},
            allow_responses => #{max => 3, expires => 2}
        },
        Rules
    ).

responses_have_defaults_test() ->
    Responses = fun(Resp) ->
        {ok, #{rules := #{allow_responses := Responses}}} = login(#{resp => Resp}, world()),
        Responses
    end,
    ?assertEqual(#{max => 1, expires => 120000}, Responses(#{max => 0, ttl => 0})),
    ?assertEqual(#{max => infinity, expires => infinity}, Responses(#{max => -1, ttl => -1})).

default_permissions_are_for_those_without_any_test() ->
    World = world(#{default_permissions => #{pub => #{deny => [<<"d">>]}, sub => #{}}}),
    Denied = fun(Claims) ->
        {ok, #{rules := #{publish := #{deny := Deny}}}} = login(Claims, World),
        Deny
    end,
    ?assertEqual([<<"d">>], Denied(#{})),
    ?assertEqual([], Denied(#{sub => #{deny => [<<"x">>]}})),
    ?assertEqual([], Denied(#{resp => #{max => 1}})).

connection_types_test_() ->
    [
        ?_assertEqual(
            {Types, Transport, Expected},
            {
                Types,
                Transport,
                element(
                    1,
                    login(#{allowed_connection_types => Types}, #{transport => Transport}, world())
                )
            }
        )
     || {Types, Transport, Expected} <- [
            {[], tcp, ok},
            {[<<"STANDARD">>], tcp, ok},
            {[<<"STANDARD">>], ssl, ok},
            {[<<"STANDARD">>], ws, error},
            {[<<"WEBSOCKET">>], ws, ok},
            {[<<"websocket">>], wss, ok},
            {[<<"WEBSOCKET">>], tcp, error},
            {[<<"MQTT">>], tcp, error}
        ]
    ].

sources_test() ->
    World = world(),
    From = fun(Address) ->
        element(1, login(#{src => [<<"10.0.0.0/8">>, <<"fd00::/8">>]}, #{peerhost => Address}, World))
    end,
    ?assertEqual(ok, From({10, 1, 2, 3})),
    ?assertEqual(error, From({11, 1, 2, 3})),
    ?assertEqual(ok, From({16#fd00, 0, 0, 0, 0, 0, 0, 1})),
    %% of a socket for both
    ?assertEqual(ok, From({0, 0, 0, 0, 0, 16#ffff, 16#0a01, 16#0203})).

signatures_test() ->
    #{account := Account, user := User, trust := Trust} = world(),
    Jwt = user(User, #{}, Account),
    Login = fun(Signature, Facts) ->
        nats_gateway_jwt:login(Jwt, Signature, {Trust, maps:merge(facts(), Facts)})
    end,
    ?assertMatch({ok, _}, Login(sign(?NONCE, User), #{})),
    ?assertEqual({error, bad_signature}, Login(undefined, #{})),
    ?assertEqual({error, bad_signature}, Login(sign(<<"another">>, User), #{})),
    ?assertEqual({error, bad_signature}, Login(sign(?NONCE, pair(user)), #{})),
    ?assertEqual({error, bad_signature}, Login(sign(?NONCE, User), #{nonce => undefined})).

bearers_need_no_signature_test() ->
    #{account := Account, user := User, trust := Trust} = World = world(),
    Jwt = user(User, #{bearer_token => true}, Account),
    {ok, Identity} = nats_gateway_jwt:login(Jwt, undefined, {Trust, facts()}),
    %% Whoever sees it can use it.
    ?assertNot(is_map_key(jwt, Identity)),
    #{trust := Strict} = trusting(World, #{limits => #{disallow_bearer => true}}),
    ?assertEqual(
        {error, bearer_not_allowed}, nats_gateway_jwt:login(Jwt, undefined, {Strict, facts()})
    ).

revocations_test() ->
    World = #{user := User} = world(),
    Issued = fun(Who, Until, IssuedAt) ->
        Revoking = trusting(World, #{revocations => #{Who => Until}}),
        login(top(#{iat => IssuedAt}, #{}), Revoking)
    end,
    [
        begin
            ?assertEqual({error, jwt_revoked}, Issued(Who, 100, 99)),
            ?assertEqual({error, jwt_revoked}, Issued(Who, 100, 100)),
            ?assertMatch({ok, _}, Issued(Who, 100, 101))
        end
     || Who <- [key(User), <<"*">>]
    ],
    ?assertMatch({ok, _}, Issued(key(pair(user)), 100, 99)).

issuers_test() ->
    [Signing, Stranger] = [pair(account), pair(account)],
    World = #{account := Account} = world(#{signing_keys => [key(Signing)]}),
    Issued = fun(Issuer, Claims) -> login(Claims, #{}, Issuer, World) end,
    Of = #{issuer_account => key(Account)},
    ?assertMatch({ok, _}, Issued(Signing, Of)),
    ?assertMatch({ok, _}, Issued(Account, Of)),
    ?assertEqual({error, unknown_account}, Issued(Signing, #{})),
    ?assertEqual({error, unknown_account}, Issued(Stranger, #{})),
    ?assertEqual({error, unknown_issuer}, Issued(Stranger, Of)).

not_a_user_test() ->
    #{operator := Operator, account := Account, trust := Trust} = world(),
    Login = fun(Jwt) -> nats_gateway_jwt:login(Jwt, undefined, {Trust, facts()}) end,
    ?assertEqual({error, not_a_user_jwt}, Login(account(Account, #{}, Operator))),
    ?assertEqual({error, {bad_jwt, <<"not a NATS JWT">>}}, Login(<<"a.b.c">>)),
    ?assertEqual({error, {bad_jwt, <<"not a NATS JWT">>}}, Login(<<>>)),
    ?assertEqual({error, {bad_jwt, <<"not a NATS JWT">>}}, Login(<<255, 0>>)).

%% -------------------------------------------------------------------------------------------
%% Scoped signing keys

scoped(Template, Claims) ->
    Scoped = pair(account),
    Key = #{
        kind => <<"user_scope">>,
        key => key(Scoped),
        role => <<"r">>,
        template => nats_gateway_credentials:nats(Template)
    },
    World = #{account := Account} = world(#{
        nats => #{signing_keys => [Key], tags => [<<"env:a">>]}, name => <<"acc">>
    }),
    #{nats := Nats} = All = maps:merge(#{nats => #{}}, Claims),
    {login(All#{nats := Nats#{issuer_account => key(Account)}}, #{}, Scoped, World), World}.

rules_of(Template, Claims) ->
    {{ok, #{rules := Rules}}, _} = scoped(Template, Claims),
    Rules.

a_scoped_user_has_the_limits_of_the_template_test() ->
    ?assertMatch(
        {{ok, #{max_payload := 7, max_subscriptions := infinity}}, _}, scoped(#{payload => 7}, #{})
    ).

a_scoped_user_says_nothing_of_its_own_test_() ->
    [
        ?_assertMatch({{error, scoped_user_with_permissions}, _}, scoped(#{}, #{nats => Own}))
     || Own <- [
            #{subs => -1},
            #{payload => 1},
            #{data => 1},
            #{bearer_token => true},
            #{pub => #{allow => [<<"a">>]}},
            #{resp => #{max => 1}},
            #{src => [<<"127.0.0.0/8">>]},
            #{allowed_connection_types => [<<"STANDARD">>]}
        ]
    ].

templates_test_() ->
    User = #{name => <<"ann">>, nats => #{tags => [<<"t:1">>, <<"t:2">>, <<"u:3">>]}},
    Allowed = fun(Entry) ->
        #{publish := #{allow := Allow}} = rules_of(#{pub => #{allow => [<<"ok">>, Entry]}}, User),
        tl(Allow)
    end,
    [
        ?_assertEqual({Entry, Expected}, {Entry, Allowed(Entry)})
     || {Entry, Expected} <- [
            {<<"a.{{name()}}.>">>, [<<"a.ann.>">>]},
            {<<"{{NAME()}}">>, [<<"ann">>]},
            {<<"{{account-name()}}">>, [<<"acc">>]},
            {<<"{{account-tag(env)}}.x">>, [<<"a.x">>]},
            {<<"{{tag(t)}}">>, [<<"1">>, <<"2">>]},
            {<<"{{tag(t)}}.{{tag(u)}}">>, [<<"1.3">>, <<"2.3">>]},
            {<<"{{tag(t)}}.{{tag(t)}}">>, [<<"1.1">>, <<"1.2">>, <<"2.1">>, <<"2.2">>]},
            %% comes to nothing
            {<<"{{tag(none)}}">>, []},
            {<<"{{tag(t)}}.{{tag(none)}}">>, []},
            %% no token of its own
            {<<"x{{name()}}">>, [<<"x{{name()}}">>]}
        ]
    ].

the_keys_in_a_template_test() ->
    Template = #{sub => #{allow => [<<"{{subject()}}">>, <<"{{account-subject()}}">>]}},
    {{ok, #{rules := #{subscribe := #{allow := Allow}}}}, #{user := User, account := Account}} =
        scoped(Template, #{}),
    ?assertEqual([key(User), key(Account)], Allow).

%% A name that breaks the subject must not open anything.
what_comes_to_nothing_allows_nothing_test_() ->
    [
        ?_assertMatch(
            #{publish := #{allow := all, deny := [<<">">>]}, subscribe := #{allow := all, deny := []}},
            rules_of(#{pub => #{allow => [<<"a.{{name()}}">>]}}, #{name => Name})
        )
     || Name <- [<<>>, <<"a..b">>, <<".">>, <<">.x">>, <<"x y">>, <<" x">>, <<"x\\t">>, <<"x\\r\\ny">>, <<"x\\fy">>]
    ].

%% What follows a blank in an entry is a queue group, but only where the template itself says so.
a_blank_in_a_value_makes_no_queue_group_test() ->
    User = #{name => <<"Ann Smith">>, nats => #{tags => [<<"t:a b">>, <<"t:c">>]}},
    Allow = #{sub => #{allow => [<<"{{name()}}.>">>, <<"x.{{tag(t)}}">>, <<"y q">>]}},
    ?assertMatch(#{subscribe := #{allow := [<<"x.c">>, <<"y q">>]}}, rules_of(Allow, User)),
    [
        ?assertMatch({{error, bad_template}, _}, scoped(#{sub => #{deny => [Entry]}}, User))
     || Entry <- [<<"s.{{name()}}">>, <<"s.{{tag(t)}}">>]
    ].

what_would_deny_nothing_is_refused_test_() ->
    [
        ?_assertMatch(
            {{error, bad_template}, _},
            scoped(#{pub => #{deny => [Entry]}}, #{name => <<".">>})
        )
     || Entry <- [<<"{{name()}}">>, <<"{{tag(none)}}">>]
    ].

unknown_functions_are_refused_test() ->
    ?assertMatch({{error, bad_template}, _}, scoped(#{pub => #{allow => [<<"{{user()}}">>]}}, #{})).

%% Of 32 tags twice: just as many as there may be; of 33: more.
combinations_are_bounded_test() ->
    Tags = fun(N) -> #{nats => #{tags => [<<"t:", (integer_to_binary(I))/binary>> || I <- lists:seq(1, N)]}} end,
    Template = #{pub => #{allow => [<<"{{tag(t)}}.{{tag(t)}}">>]}},
    #{publish := #{allow := Allow}} = rules_of(Template, Tags(32)),
    ?assertEqual(1024, length(Allow)),
    ?assertMatch({{error, bad_template}, _}, scoped(Template, Tags(33))).

%% -------------------------------------------------------------------------------------------
%% Whom to trust

trust_names_what_is_wrong_test_() ->
    [Operator, Other, Account] = [pair(operator), pair(operator), pair(account)],
    Good = account(Account, #{}, Operator),
    [
        ?_assertMatch({error, Entry, _}, nats_gateway_jwt:trust(Operators, Accounts))
     || {Entry, Operators, Accounts} <- [
            {{operator, 1}, [<<"O">>], []},
            {{operator, 2}, [key(Operator), key(Account)], []},
            {{operator, 1}, [<<"eyJ.x.y">>], []},
            {{operator, 1}, [Good], []},
            {{account, 1}, [key(Operator)], [{undefined, <<"x">>}]},
            {{account, 1}, [key(Operator)], [{undefined, operator(Operator, #{})}]},
            {{account, 2}, [key(Operator)], [{undefined, Good}, {undefined, account(pair(account), #{}, Other)}]},
            %% signed by itself
            {{account, 1}, [key(Operator)], [{undefined, account(Account, #{}, Account)}]},
            {{account_key, 1}, [key(Operator)], [{key(pair(account)), Good}]}
        ]
    ].

keys_test() ->
    Key = key(pair(user)),
    ?assertEqual({ok, Key}, nats_gateway_jwt:key(user, Key)),
    ?assertEqual({ok, Key}, nats_gateway_jwt:key(user, string:lowercase(Key))),
    [
        ?assertEqual(error, nats_gateway_jwt:key(user, Text))
     || Text <- [<<>>, <<"U">>, key(pair(account)), <<Key/binary, "A">>, binary:part(Key, 0, 55)]
    ].

%% As EMQX takes them.
keys_may_be_given_in_lower_case_test() ->
    [Operator, Account] = [pair(operator), pair(account)],
    Lower = fun(Pair) -> string:lowercase(key(Pair)) end,
    Jwt = account(Account, #{}, Operator),
    ?assertEqual(
        nats_gateway_jwt:trust([key(Operator)], [{key(Account), Jwt}]),
        nats_gateway_jwt:trust([Lower(Operator)], [{Lower(Account), Jwt}])
    ).

an_operator_may_be_given_by_its_jwt_test() ->
    [Operator, Signing, Account] = [pair(operator), pair(operator), pair(account)],
    Trust = fun(Nats, Issuer) ->
        element(1, nats_gateway_jwt:trust([operator(Operator, Nats)], [{key(Account), account(Account, #{}, Issuer)}]))
    end,
    ?assertEqual(ok, Trust(#{}, Operator)),
    ?assertEqual(error, Trust(#{}, Signing)),
    ?assertEqual(ok, Trust(#{signing_keys => [key(Signing)]}, Signing)),
    ?assertEqual(ok, Trust(#{signing_keys => [key(Signing)]}, Operator)),
    Strict = #{signing_keys => [key(Signing)], strict_signing_key_usage => true},
    ?assertEqual(ok, Trust(Strict, Signing)),
    ?assertEqual(error, Trust(Strict, Operator)).

%% An account that has expired is no mistake in the settings: its users are refused.
an_expired_account_is_read_test() ->
    [Operator, Account] = [pair(operator), pair(account)],
    ?assertMatch(
        {ok, _},
        nats_gateway_jwt:trust(
            [key(Operator)], [{undefined, account(Account, #{exp => 1, nats => #{}}, Operator)}]
        )
    ).

%% Until 2020: only the claims were signed, and what a user's token does not limit has no limit.
tokens_of_version_1_test() ->
    [Operator, Account, User] = [pair(operator), pair(account), pair(user)],
    Limits = #{subs => -1, payload => 100, conn => 3},
    {ok, Trust} = nats_gateway_jwt:trust(
        [old_jwt(operator, Operator, #{}, Operator)],
        [{key(Account), old_jwt(account, Account, #{limits => Limits}, Operator)}]
    ),
    Login = fun(Jwt, Signature) -> nats_gateway_jwt:login(Jwt, Signature, {Trust, facts()}) end,
    Old = old_jwt(user, User, #{pub => #{allow => [<<"a">>]}}, Account),
    Signature = sign(?NONCE, User),
    {ok, Identity} = Login(Old, Signature),
    ?assertMatch(
        #{
            rules := #{publish := #{allow := [<<"a">>]}},
            max_payload := 100,
            max_subscriptions := infinity,
            max_account_connections := 3
        },
        Identity
    ),
    ?assertMatch({ok, _}, Login(user(User, #{}, Account), Signature)),
    ?assertEqual({error, bad_signature}, Login(Old, undefined)),
    ?assertEqual({error, unknown_account}, Login(old_jwt(user, User, #{}, pair(account)), Signature)).
