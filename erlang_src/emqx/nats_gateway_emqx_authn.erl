%% Whether EMQX asks a NATS client for credentials, or lets it in whatever it says.
%%
%% EMQX's answer to a login is the same in both cases, and so is what its hook
%% `client.check_authn_complete' is told: `is_anonymous' is false where there is no authenticator. So
%% the chain that decides is looked at.
-module(nats_gateway_emqx_authn).

-export([is_asked_for_credentials/1]).
-export([is_only_barred/1]).

-define(GLOBAL_CHAIN, 'nats:global').

%% With an enabled authenticator, who is not known to any is refused. A listener's own chain has
%% precedence, even if it has no authenticator.
-spec is_asked_for_credentials(nats_gateway_emqx_client:clientinfo()) -> boolean().
is_asked_for_credentials(ClientInfo) -> enabled(ClientInfo) =/= [].

%% Whether it is asked only by the bar of `nats_gateway_emqx_built_in'.
-spec is_only_barred(nats_gateway_emqx_client:clientinfo()) -> boolean().
is_only_barred(ClientInfo) ->
    case enabled(ClientInfo) of
        [#{state := State}] when is_map(State) -> nats_gateway_emqx_config:is_bar(State);
        _ -> false
    end.

enabled(#{enable_authn := false}) ->
    [];
enabled(#{listener := Listener}) ->
    case emqx_authn_chains:list_authenticators(Listener) of
        {error, {not_found, _}} -> enabled_of(emqx_authn_chains:list_authenticators(?GLOBAL_CHAIN));
        OfListener -> enabled_of(OfListener)
    end.

enabled_of({ok, Authenticators}) -> [A || A = #{enable := true} <- Authenticators];
enabled_of({error, _}) -> [].
