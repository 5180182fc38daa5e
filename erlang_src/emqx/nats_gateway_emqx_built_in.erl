%% EMQX's built-in gateway, which serves `nats' where this plugin does not run: while it is stopped,
%% on other nodes of the cluster, and at boot before plugins start.
%%
%% The built-in does not have all logins that this plugin has. It lets a client in if the gateway has
%% no authenticator. So this plugin does two things where clients have to log in:
%% - When the plugin stops, it does not load the built-in.
%% - For all other places, the plugin adds an authenticator to EMQX's own settings of the gateway,
%%   which lets nobody in: the bar. It checks JWTs with a public key whose private key nobody has.
%%   EMQX stores it, and gives it to all nodes.
-module(nats_gateway_emqx_built_in).

-export([may_serve/0]).
-export([judge/0]).
-export([is_bar_left/1]).
-export([adapt_bar/1]).
%% For tests
-export([unknown/2]).
-export([bar/2]).

-include_lib("kernel/include/logger.hrl").
-include_lib("public_key/include/public_key.hrl").

%% How long after the page was saved a bar may still be there that is to be removed. EMQX changes its
%% settings on one node after the other.
-define(LEFT_MS, 5000).

%% Whether the built-in may serve in place of this plugin with the current settings.
-spec may_serve() -> true | {false, Unknown :: [Text :: binary()]}.
may_serve() ->
    case {nats_gateway_emqx_page:get(), gateway()} of
        {#{built_in_may_serve := true}, _} -> true;
        {_, undefined} -> true;
        {Page, Gateway} -> may_serve(unknown(Gateway, Page))
    end.

may_serve([]) -> true;
may_serve(Unknown) -> {false, Unknown}.

%% Whether the bar is there when it should be. `open' means that it is missing, and lists what the
%% built-in does not ask for. `logins_lost' means that it is there although nobody has to log in:
%% the settings of the logins may have been lost.
-spec judge() -> ok | {open, [Text :: binary()]} | logins_lost.
judge() ->
    case {nats_gateway_emqx_page:get(), gateway()} of
        {_, undefined} -> ok;
        {Page, Gateway} -> judge(bar(Gateway, Page), Gateway, Page)
    end.

judge(Bar, Gateway, Page) when Bar =:= add; Bar =:= cannot -> {open, unknown(Gateway, Page)};
judge(remove, _, _) -> logins_lost;
judge(ok, _, _) -> ok.

%% Whether a client whom nobody else asks for a login meets a bar that is about to go: the page has just
%% been saved without logins. Later, the settings of the logins may have been lost.
-spec is_bar_left(nats_gateway_emqx_client:clientinfo()) -> boolean().
is_bar_left(ClientInfo) ->
    nats_gateway_emqx_page:was_saved_within(?LEFT_MS) andalso
        not has_logins(nats_gateway_emqx_page:get()) andalso judge() =:= logins_lost andalso
        nats_gateway_emqx_authn:is_only_barred(ClientInfo).

%% Adds the bar where it is needed, and removes it where it is not. The bar is removed only when
%% somebody has saved the page: otherwise the settings may have been lost. This changes EMQX's
%% settings, and EMQX then calls the gateway with them: so the gateway's own process must not call
%% this.
-spec adapt_bar(saved | found) -> ok | {error, term()}.
adapt_bar(Settings) ->
    case {nats_gateway_emqx_page:get(), gateway()} of
        {_, undefined} ->
            ok;
        {Page, Gateway} ->
            Bar = bar(Gateway, Page),
            Bar =:= cannot andalso
                ?LOG_WARNING(#{
                    msg => "nats_is_open_where_the_plugin_does_not_run",
                    unknown_to_the_built_in => unknown(Gateway, Page),
                    hint => "give the gateway nats an authenticator, and listeners for everybody enable_authn = false"
                }),
            change_bar(Bar, Settings)
    end.

change_bar(add, _) ->
    case emqx_gateway_conf:add_authn(nats, authenticator()) of
        {ok, _} ->
            ?LOG_NOTICE(#{
                msg => "authenticator_added",
                gateway => nats,
                acl_claim_name => nats_gateway_emqx_config:bar_name(),
                reason => "EMQX's built-in gateway must let nobody in where this plugin does not run"
            });
        {error, Reason} ->
            %% Another node may have been faster.
            case is_barred(gateway()) of
                true -> ok;
                false -> {error, Reason}
            end
    end;
change_bar(remove, saved) ->
    case emqx_gateway_conf:remove_authn(nats) of
        ok ->
            ?LOG_NOTICE(#{
                msg => "authenticator_removed",
                gateway => nats,
                acl_claim_name => nats_gateway_emqx_config:bar_name()
            });
        {error, Reason} -> {error, Reason}
    end;
change_bar(_, _) ->
    ok.

gateway() -> emqx:get_config([gateway, nats], undefined).

authenticator() ->
    #{
        <<"mechanism">> => <<"jwt">>,
        <<"from">> => <<"password">>,
        <<"algorithm">> => <<"public-key">>,
        <<"use_jwks">> => false,
        <<"public_key">> => public_key(),
        <<"acl_claim_name">> => nats_gateway_emqx_config:bar_name(),
        <<"enable">> => true
    }.

%% EMQX shows its settings to everybody who may read them, so they must hold no secret. The private
%% key is not kept.
public_key() ->
    {Point, _} = crypto:generate_key(ecdh, secp256r1),
    Key = {#'ECPoint'{point = Point}, {namedCurve, ?secp256r1}},
    public_key:pem_encode([public_key:pem_entry_encode('SubjectPublicKeyInfo', Key)]).

is_barred(#{authentication := Authenticator}) when is_map(Authenticator) ->
    nats_gateway_emqx_config:is_bar(Authenticator);
is_barred(_) ->
    false.

%% What to do with the bar. The gateway has at most one authenticator. If an operator has set one,
%% the bar is not needed. If that one is disabled, there is no place for the bar (`cannot').
-spec bar(Gateway :: map(), Page :: map()) -> add | remove | cannot | ok.
bar(Gateway, Page) ->
    IsNeedless = is_known(Gateway) orelse not demands_logins(Gateway, Page),
    case {is_barred(Gateway), Page} of
        {IsBarred, #{built_in_may_serve := true}} -> remove_if(IsBarred);
        {IsBarred, _} when IsNeedless -> remove_if(IsBarred);
        {true, _} -> ok;
        {false, _} -> add(Gateway, Page)
    end.

remove_if(true) -> remove;
remove_if(false) -> ok.

%% A node that cannot read its settings does not change those of all nodes. The bar would also close
%% listeners that let everybody in.
add(Gateway, Page) ->
    case is_readable(Page) andalso not lets_anybody_in(Gateway, Page) of
        true when not is_map_key(authentication, Gateway) -> add;
        _ -> cannot
    end.

is_readable(#{login := Login}) -> Login =/= nats_gateway_login:nobody().

%% Whether the built-in asks every client for a login.
is_known(Gateway) ->
    maps:get(internal_authn, Gateway, []) =/= [] orelse
        nats_gateway_emqx_config:has_authenticators(Gateway, #{}).

demands_logins(Gateway, Page) ->
    has_logins(Page) orelse own_authentication(Gateway) =/= [].

has_logins(#{login := Login}) -> Login =/= nats_gateway_login:none().

%% The listeners that have authenticators of their own. There the built-in asks only clients that
%% send a CONNECT.
own_authentication(Gateway) ->
    [Listener || Listener <- asking_listeners(Gateway), has_own_authenticators(Listener)].

asking_listeners(Gateway) ->
    [
        Listener
     || Listener = #{conf := Conf} <- nats_gateway_emqx_config:listeners(Gateway),
        maps:get(enable_authn, Conf, true)
    ].

has_own_authenticators(#{conf := Conf}) -> nats_gateway_emqx_config:has_authenticators(#{}, Conf).

lets_anybody_in(Gateway, Page) ->
    not has_logins(Page) andalso
        not lists:all(fun has_own_authenticators/1, asking_listeners(Gateway)).

%% What this plugin asks clients for and the built-in does not.
-spec unknown(Gateway :: map(), Page :: map()) -> [Text :: binary()].
unknown(Gateway, Page = #{peer_cert_as_username := Certificate}) ->
    Methods = maps:get(internal_authn, Gateway, []),
    IsKnown = is_known(Gateway),
    [<<"the logins of the plugin's page">> || Methods =:= [], has_logins(Page)] ++
        [
            <<"the logins of listener ", (listener_name(Listener))/binary>>
         || not IsKnown, Listener <- own_authentication(Gateway)
        ] ++
        [<<"the user names in certificates">> || Certificate =/= disabled] ++
        [<<"all that a JWT limits">> || lists:any(fun is_jwt/1, Methods)].

is_jwt(#{type := Type}) -> Type =:= jwt.

listener_name(#{id := Id}) -> atom_to_binary(nats_gateway_emqx_config:listener_id(Id)).
