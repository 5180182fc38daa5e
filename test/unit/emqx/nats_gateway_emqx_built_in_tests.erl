-module(nats_gateway_emqx_built_in_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_emqx_built_in, [bar/2, unknown/2]).
-import(nats_gateway_emqx_config, [is_bar/1]).

-define(NONE, #{
    login => nats_gateway_login:none(),
    peer_cert_as_username => disabled,
    built_in_may_serve => false
}).
-define(AUTHENTICATOR, #{mechanism => password_based, enable => true}).
-define(BAR, #{
    mechanism => jwt, enable => true, acl_claim_name => <<"bar_of_the_plugin_nats_gateway">>
}).
-define(LOGINS, <<"the logins of the plugin's page">>).

page(Login) -> ?NONE#{login := Login}.

logins() ->
    {ok, Login} = nats_gateway_login:new(#{methods => [{token, {sha256, <<>>}}]}),
    page(Login).

gateway(More, Listeners) ->
    More#{
        listeners => #{
            tcp => maps:from_list([
                {Name, Conf#{bind => 4222}}
             || {Name, Conf} <- Listeners
            ])
        }
    }.

%% {what to do with the bar, what the built-in would not ask for}
judged(Gateway, Page) -> {bar(Gateway, Page), unknown(Gateway, Page)}.

judged_test_() ->
    Open = gateway(#{}, [{default, #{}}]),
    Own = #{authentication => [?AUTHENTICATOR]},
    OfA = <<"the logins of listener nats:tcp:a">>,
    Barred = gateway(#{authentication => ?BAR}, [{default, #{}}]),
    Asking = gateway(#{authentication => ?AUTHENTICATOR}, [{default, #{}}]),
    Disabled = gateway(#{authentication => ?AUTHENTICATOR#{enable := false}}, [{default, #{}}]),
    Cert = <<"the user names in certificates">>,
    Internal = fun(Types) ->
        gateway(#{internal_authn => [#{type => Type} || Type <- Types]}, [{default, #{}}])
    end,
    [
        {Text, ?_assertEqual(Expected, judged(Gateway, Page))}
     || {Text, Gateway, Page, Expected} <- [
            {"nobody has to log in", Open, ?NONE, {ok, []}},
            {"logins of the page", Open, logins(), {add, [?LOGINS]}},
            {"and the bar", Barred, logins(), {ok, [?LOGINS]}},
            {"no logins any more", Barred, ?NONE, {remove, []}},
            {"the operator wants it so", Open, (logins())#{built_in_may_serve := true},
                {ok, [?LOGINS]}},
            {"now he does", Barred, (logins())#{built_in_may_serve := true}, {remove, [?LOGINS]}},
            {"EMQX's own authenticator", Asking, logins(), {ok, [?LOGINS]}},
            {"one that is switched off", Disabled, logins(), {cannot, [?LOGINS]}},
            {"settings that cannot be read", Open, page(nats_gateway_login:nobody()),
                {cannot, [?LOGINS]}},
            {"they change nothing", Barred, page(nats_gateway_login:nobody()), {ok, [?LOGINS]}},
            {"a listener's own", gateway(#{}, [{a, Own}]), ?NONE, {add, [OfA]}},
            {"and the gateway's", gateway(#{authentication => ?AUTHENTICATOR}, [{a, Own}]), ?NONE,
                {ok, []}},
            {"and the bar", gateway(#{authentication => ?BAR}, [{a, Own}]), ?NONE, {ok, [OfA]}},
            {"an open listener beside it", gateway(#{}, [{a, Own}, {b, #{}}]), ?NONE,
                {cannot, [OfA]}},
            {"one that asks nobody", gateway(#{}, [{a, Own}, {b, #{enable_authn => false}}]), ?NONE,
                {add, [OfA]}},
            {"and the page's", gateway(#{}, [{a, Own}, {b, #{}}]), logins(), {add, [?LOGINS, OfA]}},
            {"a listener that is off", gateway(#{}, [{a, Own#{enable => false}}, {b, #{}}]), ?NONE,
                {ok, []}},
            {"its authenticator is off", gateway(#{}, [{a, #{authentication => [?AUTHENTICATOR#{enable := false}]}}]),
                ?NONE, {ok, []}},
            {"names in certificates", Open, ?NONE#{peer_cert_as_username := cn}, {ok, [Cert]}},
            %% EMQX has them from 6.2 on
            {"a token in EMQX's settings", Internal([token]), logins(), {ok, []}},
            {"a JWT in EMQX's settings", Internal([token, jwt]), logins(),
                {ok, [<<"all that a JWT limits">>]}}
        ]
    ].

the_bar_is_known_again_test() ->
    ?assert(is_bar(?BAR)),
    ?assertNot(is_bar(?AUTHENTICATOR)),
    ?assertNot(is_bar(?BAR#{acl_claim_name := <<"acl">>})).
